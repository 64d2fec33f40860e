# The package in an image. `docker build --target cpu -t prunetune .` needs no GPU; `--target cuda` (the last stage, and so
# the default) wants a driver and the container toolkit on the host.
#   docker run --rm -v "$PWD:/data" prunetune run demo --out runs/demo
# Code that a model wrote runs only where namespaces may be made: add `--cap-add SYS_ADMIN --security-opt apparmor=unconfined --user root`.
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
RUN pip install --no-cache-dir build==1.6.1
COPY pyproject.toml README.md LICENSE CHANGELOG.md CITATION.cff constraints.txt ./
COPY src src
RUN python -m build --wheel --outdir /dist

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 HF_HOME=/data/.cache/huggingface
RUN useradd --uid 1000 --create-home prunetune && mkdir /data && chown prunetune /data
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /dist /tmp/dist
WORKDIR /data
ENTRYPOINT ["prunetune"]
CMD ["--help"]

FROM base AS cpu
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
 && pip install --no-cache-dir --constraint /tmp/constraints.txt "$(ls /tmp/dist/*.whl)[eval,gguf,quantize]"
USER 1000

# The registry's own Linux build of torch brings CUDA's libraries along.
FROM base AS cuda
RUN pip install --no-cache-dir torch==2.13.0 \
 && pip install --no-cache-dir --constraint /tmp/constraints.txt "$(ls /tmp/dist/*.whl)[eval,gguf,quantize]"
USER 1000
