# The learner, and pre-training: torch. From the repository's root:
#   docker build -f deploy/learn.Dockerfile -t plaudit-learn .
# With CUDA, which is gigabytes more: --build-arg TORCH_BACKEND=cu130
FROM python:3.11-slim
ARG TORCH_BACKEND=cpu
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY models models
COPY requirements requirements
RUN pip install --no-cache-dir --constraint requirements/constraints.txt uv \
    && UV_TORCH_BACKEND=$TORCH_BACKEND uv pip install --system --no-cache \
        --constraint requirements/constraints.txt '.[learn,kafka,tracing,postgres]' \
    && groupadd --gid 10001 plaudit \
    && useradd --uid 10001 --gid plaudit --create-home plaudit \
    && install -d -o plaudit -g plaudit /data
# One number in all images, so that they can share a volume; numeric, so that `runAsNonRoot` can be checked.
USER 10001:10001
WORKDIR /home/plaudit
ENV PLAUDIT_DATA_DIR=/data PLAUDIT_LEARNER__HOST=0.0.0.0
VOLUME /data
EXPOSE 8003
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8003/readyz', timeout=4)"]
ENTRYPOINT ["plaudit"]
CMD ["learn", "--config", "/etc/plaudit/plaudit.toml"]
