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

FROM build AS build-cuda
RUN pip install --require-hashes -r compose/requirements.txt
COPY . .
RUN pip install --no-deps .

# The same versions. PyTorch's CPU wheel has another hash, so it is installed first, and the rest with --no-deps.
FROM build AS build-cpu
ARG TORCH_INDEX
RUN pip install --index-url "$TORCH_INDEX" "$(grep -o '^torch==[^ ]*' compose/requirements.txt)" \
    && pip install --no-deps --require-hashes -r compose/requirements-cpu.txt
COPY . .
RUN pip install --no-deps .

FROM ${PYTHON} AS base
RUN useradd --create-home --uid 10001 stream
USER 10001
WORKDIR /home/stream
RUN mkdir -p models .cache/huggingface
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 STREAM_WEB_HOST=0.0.0.0 STREAM_LOG_FORMAT=json \
    TRITON_CACHE_DIR=/home/stream/.cache/triton
ENTRYPOINT ["stream"]

FROM base AS cpu
COPY --from=build-cpu /venv /venv
ENV REQUIRE_GPU=0

FROM base AS cuda
COPY --from=build-cuda /venv /venv
