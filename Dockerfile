# One image for the three workers, the search service and every command. It runs as an unprivileged user. Two targets:
#
#   docker build --target cuda -t chunk-stream:cuda .
#   docker build --target cpu -t chunk-stream:cpu --build-arg TORCH_INDEX=… .   # index of PyTorch's CPU wheels
#
# PyTorch's wheels include CUDA: on the host, `cuda` needs only the driver and the NVIDIA Container Toolkit.
ARG PYTHON=python:3.13-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /src
COPY compose/requirements*.txt compose/

FROM build AS dependencies-cuda
RUN pip install --require-hashes -r compose/requirements.txt

# The same versions. PyTorch's CPU wheel has another hash, so it is installed first, and the rest with --no-deps.
FROM build AS dependencies-cpu
ARG TORCH_INDEX
RUN pip install --index-url "$TORCH_INDEX" "$(grep -o '^torch==[^ ]*' compose/requirements.txt)" \
    && pip install --no-deps --require-hashes -r compose/requirements-cpu.txt

FROM build AS code
RUN pip install --require-hashes -r compose/requirements-build.txt
COPY . .
RUN pip install --no-deps --no-build-isolation --prefix /code .

FROM ${PYTHON} AS base
# As process 1, tini passes SIGTERM on: the kernel would drop it until Python has a handler.
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 stream && chmod 755 /home/stream \
    && install --directory --owner=stream --group=stream /home/stream/models /home/stream/.cache \
    /home/stream/.cache/huggingface
WORKDIR /home/stream
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 STREAM_WEB_HOST=0.0.0.0 STREAM_LOG_FORMAT=json \
    TRITON_CACHE_DIR=/home/stream/.cache/triton
ENTRYPOINT ["tini", "--", "stream"]

# A change of the code changes only the last layer of a target.
FROM base AS cpu
COPY --from=dependencies-cpu /venv /venv
COPY --from=code /code /venv
ENV REQUIRE_GPU=0
USER 10001

FROM base AS cuda
# Triton compiles a launcher in C for each kernel when it first runs.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=dependencies-cuda /venv /venv
COPY --from=code /code /venv
USER 10001
