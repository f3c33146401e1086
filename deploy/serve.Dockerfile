# The inference service: ONNX Runtime, no torch. From the repository's root:
#   docker build -f deploy/serve.Dockerfile -t plaudit-serve .
FROM python:3.11-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY models models
COPY requirements requirements
RUN pip install --no-cache-dir --constraint requirements/constraints.txt '.[serve,kafka,tracing,postgres]' \
    && groupadd --gid 10001 plaudit \
    && useradd --uid 10001 --gid plaudit --create-home plaudit \
    && install -d -o plaudit -g plaudit /data
# One number in all images, so that they can share a volume; numeric, so that `runAsNonRoot` can be checked.
USER 10001:10001
WORKDIR /home/plaudit
ENV PLAUDIT_DATA_DIR=/data PLAUDIT_SERVING__HOST=0.0.0.0 PLAUDIT_SERVING__METRICS_HOST=0.0.0.0
# It listens to other machines, so it starts with TLS and keys alone: see docs/how-to/deploy.md.
VOLUME /data
EXPOSE 8001 8002
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8002/readyz', timeout=4)"]
ENTRYPOINT ["plaudit"]
CMD ["serve", "--config", "/etc/plaudit/plaudit.toml"]
