# The one door: every target does its own set-up, and only once.
#   make serve                       the whole service on this machine
#   make demo PROMPT="a red apple"   one picture, into demo.png
#   make test ARGS="tests/app -x"    the test suite, or part of it
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help serve demo test test-load soak overload fuzz containers-test lint types audit bench bench-quick clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Not compiled ahead: that takes two minutes, and most files are never imported.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet --no-compile --constraint constraints.txt
ARGS ?=

# The raw text, never expanded by make or pasted into a shell line: any quote or $ survives.
PROMPT ?= a cat face
unexport PROMPT
export DEMO_PROMPT := $(value PROMPT)

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

$(VENV)/.made:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Avocat needs Python 3.11 or newer, found: $$("$(PYTHON)" --version 2>&1)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null \
		|| { echo "This Python cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing Avocat into $(VENV); the first time takes a few minutes"
	$(PIP) --editable '.[embedded,worker,onnx]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing Avocat and its tools into $(VENV); the first time takes a few minutes"
	$(PIP) --editable '.[embedded,worker,onnx,openvino,s3,tracing,train,test,lint,bench]'
	@# Alone: with its own dependencies uvicorn would serve our API by another loop than installed.
	$(PIP) --no-deps litserve pyzmq
	@touch $(VENV)/.run $@

serve: $(VENV)/.run ## Start Redis, the API and a worker (AVOCAT_PORT=… and other settings apply)
	@exec $(BIN)/avocat serve $(ARGS)

demo: $(VENV)/.run ## Draw PROMPT="…" into demo.png
	@exec $(BIN)/avocat generate --serve --best-of 4 --output demo.png $(ARGS) -- "$$DEMO_PROMPT"

test: $(VENV)/.dev ## Run the tests (ARGS="tests/app -x" for some of them)
	@# A test process that dies is a fault, and pytest-xdist may wait for ever for its tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0 $(ARGS)

test-load: $(VENV)/.dev ## Run the tests that load the machine, and show what they measure
	$(BIN)/python -m pytest -m load -s $(ARGS)

soak: $(VENV)/.dev ## Break everything under load: 1,000 jobs, 100 faults (ARGS="--seed 2" for others)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.run $(ARGS)

overload: $(VENV)/.dev ## Ask ten times what the service can do, for five minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.overload $(ARGS)

fuzz: $(VENV)/.dev ## Follow coverage through what strangers supply, ten minutes each (ARGS="--seconds 60")
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) --editable '.[fuzz]'
	for target in bundle picture url; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run $$target $(ARGS) || exit 1; done

containers-test: ## Build both images and run the compose file, where there is a container engine
	@bash deploy/containers-test.sh

lint: $(VENV)/.dev ## Check style and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

audit: $(VENV)/.dev ## Write sbom.json (CycloneDX), and look for known vulnerabilities where PyPI can be asked
	@bash .ci/audit "$(PYTHON)" $(VENV)

bench: $(VENV)/.dev ## Measure everything on an idle machine: ≤ 15 minutes, kept in docs/performance.md
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(VENV)/.dev ## The same in ≤ 2 minutes, rough figures, nothing kept
	$(BIN)/python -m benchmarks --quick $(ARGS)

clean: ## Remove the virtual environment and caches; data/ and bundles/ stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
