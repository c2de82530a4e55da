# A server of the 21 tasks, for a CPU or a GPU.
#
#   docker build -t omnialpha .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:7000:7000 omnialpha
#
# The wheel of torch brings what a GPU needs; the driver comes from the host (`docker run --gpus all`). For a smaller
# image without CUDA, name PyTorch's index of CPU wheels: --build-arg PIP_EXTRA_INDEX_URL=... --build-arg TORCH_LOCAL=+cpu
ARG PYTHON=3.11-slim
FROM python:${PYTHON} AS build
ARG PIP_EXTRA_INDEX_URL=
ARG TORCH_LOCAL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
# torch first and alone, as in the Makefile, so that a change of the source does not fetch it again
RUN sed -i "s/^torch==.*/&${TORCH_LOCAL}/" constraints.txt && pip install -c constraints.txt "$(grep -m1 '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN pip install -c constraints.txt '.[serve]'
# the matting kernels are compiled now, for any processor, as that takes about a minute
ENV NUMBA_CPU_NAME=generic NUMBA_CACHE_DIR=/kernels
RUN python -c 'from omnialpha import kernels; kernels.load()'

FROM python:${PYTHON}
COPY --from=build /venv /venv
COPY --from=build /kernels /kernels
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 HOME=/tmp \
    NUMBA_CPU_NAME=generic \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV NUMBA_CACHE_DIR=$HOME/kernels
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin omnialpha
USER 10001
WORKDIR /tmp
EXPOSE 7000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7000/healthz', timeout=4)"]
# numba uses no cache that it cannot write to, hence the copy. Options of `omnialpha serve` follow the image's name, and
# replace --lazy, with which a server of cut-outs loads the finder alone
ENTRYPOINT ["sh", "-c", "cp -r /kernels \"$HOME\" && exec omnialpha serve --host 0.0.0.0 --port 7000 \"$@\"", "serve"]
CMD ["--lazy"]
