# An image that serves models, for CPUs or NVIDIA GPUs, from the checkout:
#
#   docker build --file=launch/serve.Dockerfile --tag=bert_serve .
#   docker build --file=launch/serve.Dockerfile --build-arg=EXTRAS=serve,cuda13 --tag=bert_serve .
#   docker run --publish=127.0.0.1:8000:8000 --volume="$PWD/runs:/runs:ro" bert_serve /runs/sst2
#   docker run --gpus=all --publish=127.0.0.1:8000:8000 --volume="$PWD/runs:/runs:ro" bert_serve /runs/sst2
#
# Inside it listens on all addresses: --publish decides who reaches it. Compiled programs are kept in /cache; a volume
# there saves the next container their compilation. launch/serve.compose.yaml has all of this.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG EXTRAS=serve
WORKDIR /bert_jax
COPY requirements.txt setup.cfg pyproject.toml README.md LICENSE ./
COPY launch/setup.sh launch/
COPY experiments experiments/
COPY bert_jax bert_jax/
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN PIP_NO_CACHE_DIR=1 source launch/setup.sh && mkdir --mode=1777 /cache
USER 1000
ENV JAX_COMPILATION_CACHE_DIR=/cache
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=10m \
  CMD ["/bert_jax/.venv/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready')"]
ENTRYPOINT ["/bert_jax/.venv/bin/python", "-m", "bert_jax.serve", "--host=0.0.0.0"]
