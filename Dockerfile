# An image runs as an unprivileged user. Three targets:
#
#   docker build --target lean -t chunk-stream:lean .                           # all that loads no SPLADE model
#   docker build --target cuda -t chunk-stream:cuda .                           # everything
#   docker build --target cpu -t chunk-stream:cpu --build-arg TORCH_INDEX=… .   # index of PyTorch's CPU wheels
#
# PyTorch's wheels include CUDA: on the host, `cuda` needs only the driver and the NVIDIA Container Toolkit.
# docs/containers.md says how to pin the base image by its digest and PyTorch's CPU wheel by its hash.
ARG PYTHON=python:3.13-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /src

FROM build AS dependencies-cuda
COPY compose/requirements.txt compose/
RUN pip install --require-hashes -r compose/requirements.txt

# The same versions. PyTorch's CPU wheel has another hash, TORCH_SHA256: without it, pip does not verify the wheel. The
# lock file has PyTorch's own dependencies with a marker that is never true.
FROM build AS dependencies-cpu
COPY compose/requirements.txt compose/requirements-cpu.txt compose/
ARG TORCH_INDEX
ARG TORCH_SHA256
RUN echo "$(grep -o '^torch==[^ ]*' compose/requirements.txt) ${TORCH_SHA256:+--hash=sha256:$TORCH_SHA256}" > torch.txt \
    && pip install --no-deps --index-url "$TORCH_INDEX" -r torch.txt \
    && sed "/^torch==/,/[^\\]$/d; s/ \(;\|and\) sys_platform == 'none'//" compose/requirements-cpu.txt > rest.txt \
    && pip install --no-deps --require-hashes -r rest.txt

FROM build AS dependencies-lean
COPY compose/requirements-lean.txt compose/
RUN pip install --require-hashes -r compose/requirements-lean.txt

FROM build AS code
COPY compose/requirements-build.txt compose/
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
FROM base AS lean
COPY --from=dependencies-lean /venv /venv
COPY --from=code /code /venv
USER 10001

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
