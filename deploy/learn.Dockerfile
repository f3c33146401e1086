# The learner, and pre-training: torch. From the repository's root:
#   docker build -f deploy/learn.Dockerfile -t plaudit-learn .
FROM python:3.11-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY models models
COPY requirements requirements
RUN pip install --no-cache-dir --constraint requirements/constraints.txt '.[learn,kafka]' \
    && useradd --create-home plaudit \
    && install -d -o plaudit /data
USER plaudit
WORKDIR /home/plaudit
ENV PLAUDIT_DATA_DIR=/data PLAUDIT_LEARNER__HOST=0.0.0.0
VOLUME /data
EXPOSE 8003
ENTRYPOINT ["plaudit"]
CMD ["learn", "--config", "/etc/plaudit/plaudit.toml"]
