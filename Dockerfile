# Two images from one file:
#   docker build --target api -t avocat-api .         the HTTP service, without torch
#   docker build --target worker -t avocat-worker .   what draws, with the bundled model
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/avocat
COPY constraints.txt pyproject.toml README.md LICENSE NOTICE ./
COPY app app

FROM build AS build-api
RUN /opt/avocat/bin/pip install --no-cache-dir -c constraints.txt .

FROM build AS build-worker
# Where to find the torch build you want (CPU or CUDA): "--find-links DIR" or an index; empty: pip's own choice.
ARG PIP_EXTRA_ARGS=""
COPY models models
COPY worker worker
COPY bundles bundles
RUN /opt/avocat/bin/pip install --no-cache-dir -c constraints.txt ${PIP_EXTRA_ARGS} ".[worker]"

FROM ${PYTHON_IMAGE} AS base
RUN useradd --system --uid 10001 --home-dir /data avocat \
    && install -d -o avocat -g avocat /data
ENV PATH=/opt/avocat/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AVOCAT_DATA_DIR=/data \
    AVOCAT_LOG_JSON=true
WORKDIR /data
VOLUME /data
USER avocat

FROM base AS api
COPY --from=build-api /opt/avocat /opt/avocat
ENV AVOCAT_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["avocat"]
CMD ["api"]

FROM base AS worker
COPY --from=build-worker /opt/avocat /opt/avocat
STOPSIGNAL SIGTERM
ENTRYPOINT ["avocat"]
CMD ["worker"]
