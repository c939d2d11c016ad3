"""`python -m tests.fuzz.run TARGET`: inputs that reach new code, until the time is over.

Ends with 1, and says which file holds the input, as soon as one does what it should not.
"""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

import atheris

# Read before they are imported: only what is instrumented tells the fuzzer where it was.
_INSTRUMENTED = {
    "bundle": ["models", "json", "safetensors", "open_clip.factory", "open_clip.model"],
    "picture": ["app", "PIL", "json", "xml"],
    "url": ["app", "starlette", "urllib", "fastapi"],
}
_MOST_BYTES = 16384


def main() -> None:
    """The command; libFuzzer ends the process itself."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("target", choices=_INSTRUMENTED)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--found", type=Path, default=Path("data/fuzz"), help="folder of bad inputs"
    )
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # no input may lead to a download
    with atheris.instrument_imports(include=_INSTRUMENTED[options.target]):
        from app import logs
        from tests.fuzz.mutation import mutate
        from tests.fuzz.targets import TARGETS
    logs.configure("error")
    logging.disable()
    target = TARGETS[options.target]()

    def change(data: bytes, most_bytes: int, seed: int) -> bytes:
        is_json = bool(data) and data[0] in target.json_kinds
        return mutate(data, most_bytes, seed, is_json, atheris.Mutate)

    options.found.mkdir(parents=True, exist_ok=True)
    corpus = Path(tempfile.mkdtemp(prefix="avocat-corpus-"))
    for number, data in enumerate(target.seeds()):
        (corpus / str(number)).write_bytes(data)
    arguments = [sys.argv[0], str(corpus), f"-max_total_time={options.seconds}"]
    arguments += [f"-seed={options.seed}", f"-max_len={_MOST_BYTES}", "-timeout=20"]
    arguments += ["-rss_limit_mb=3072", "-print_final_stats=1", "-verbosity=1"]
    arguments += [f"-artifact_prefix={options.found}/{options.target}-"]
    atheris.Setup(arguments, target.one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
