# The inference service: ONNX Runtime, no torch. From the repository's root:
#   docker build -f deploy/serve.Dockerfile -t plaudit-serve .
FROM python:3.11-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY models models
COPY requirements requirements
RUN pip install --no-cache-dir --constraint requirements/constraints.txt '.[serve,kafka]' \
    && useradd --create-home plaudit \
    && install -d -o plaudit /data
USER plaudit
WORKDIR /home/plaudit
ENV PLAUDIT_DATA_DIR=/data PLAUDIT_SERVING__HOST=0.0.0.0 PLAUDIT_SERVING__METRICS_HOST=0.0.0.0
# It listens to other machines, so it starts with TLS and keys alone: see docs/how-to/deploy.md.
VOLUME /data
EXPOSE 8001 8002
ENTRYPOINT ["plaudit"]
CMD ["serve", "--config", "/etc/plaudit/plaudit.toml"]
