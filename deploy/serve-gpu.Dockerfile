# The inference service on an NVIDIA GPU. onnxruntime-gpu and the image go together: it is built for one CUDA.
# From the repository's root:
#   docker build -f deploy/serve-gpu.Dockerfile -t plaudit-serve-gpu .
#   docker run --gpus all -v plaudit-data:/data -v ./plaudit.toml:/etc/plaudit/plaudit.toml:ro -p 127.0.0.1:8001:8001 plaudit-serve-gpu
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY models models
COPY requirements requirements
RUN python3 -m venv /opt/plaudit \
    && /opt/plaudit/bin/pip install --no-cache-dir --constraint requirements/constraints.txt '.[gpu,kafka,tracing,postgres]' onnxruntime-gpu==1.31.1 \
    && groupadd --gid 10001 plaudit \
    && useradd --uid 10001 --gid plaudit --create-home plaudit \
    && install -d -o plaudit -g plaudit /data
# One number in all images, so that they can share a volume; numeric, so that `runAsNonRoot` can be checked.
USER 10001:10001
WORKDIR /home/plaudit
# `cuda` refuses to start without a GPU, instead of falling back to the processor.
ENV PATH=/opt/plaudit/bin:$PATH \
    PLAUDIT_DATA_DIR=/data PLAUDIT_SERVING__HOST=0.0.0.0 PLAUDIT_SERVING__METRICS_HOST=0.0.0.0 PLAUDIT_SERVING__DEVICE=cuda
# It listens to other machines, so it starts with TLS and keys alone: see docs/how-to/deploy.md.
VOLUME /data
EXPOSE 8001 8002
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8002/readyz', timeout=4)"]
ENTRYPOINT ["plaudit"]
CMD ["serve", "--config", "/etc/plaudit/plaudit.toml"]
