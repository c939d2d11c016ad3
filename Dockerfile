# Two images from one file:
#   docker build --target api -t avocat-api .         the HTTP service, without torch
#   docker build --target worker -t avocat-worker .   what draws, with the bundled model
# Pin the base by digest: --build-arg PYTHON_IMAGE=python:3.11-slim@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/avocat
COPY constraints.txt pyproject.toml README.md LICENSE NOTICE ./
COPY app app

FROM build AS build-api
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/avocat/bin/pip install -c constraints.txt ".[s3,tracing]"

FROM build AS build-worker
# Which build of torch: `cpu`, or a CUDA one as `cu128`; it is the name of an index of PyTorch's.
ARG TORCH_BUILD=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl
# `sd` beside these for models of `avocat import`.
ARG EXTRAS=worker,onnx,s3,tracing
# Where that index is not reached: PIP_EXTRA_ARGS="--find-links DIR", and TORCH_INDEX= empty.
ARG PIP_EXTRA_ARGS=""
COPY models models
COPY worker worker
COPY bundles bundles
# PIP_EXTRA_ARGS is several words.
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/avocat/bin/pip install -c constraints.txt ${PIP_EXTRA_ARGS} \
    ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}/${TORCH_BUILD}"} ".[${EXTRAS}]"

FROM ${PYTHON_IMAGE} AS base
LABEL org.opencontainers.image.title="Avocat" \
    org.opencontainers.image.description="Self-hosted text-to-image web service" \
    org.opencontainers.image.licenses="Apache-2.0"
# tini hands signals on and takes in orphans, under every runtime and not with `--init` alone;
# its version is that of the base image's release.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends tini \
    && useradd --system --uid 10001 --home-dir /data avocat \
    && install -d -o avocat -g avocat /data
# Nothing is written but /data and /tmp: the root file system may be read-only.
ENV PATH=/opt/avocat/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    AVOCAT_DATA_DIR=/data \
    AVOCAT_LOG_JSON=true
WORKDIR /data
VOLUME /data
USER 10001
ENTRYPOINT ["tini", "--", "avocat"]

FROM base AS api
COPY --from=build-api /opt/avocat /opt/avocat
ENV AVOCAT_HOST=0.0.0.0
EXPOSE 8000
# bash itself asks: starting Python every ten seconds is a load of its own.
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8000 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
CMD ["api"]
# Last, or each revision would build all of the above again.
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

FROM base AS worker
COPY --from=build-worker /opt/avocat /opt/avocat
HEALTHCHECK --interval=15s --timeout=30s --start-period=300s CMD ["python", "-m", "worker.healthy"]
CMD ["worker"]
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
