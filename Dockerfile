# The images of zhub. Two targets:
#
#   api      the API, the scheduler and the `zhub` command; neither torch nor Ray
#   worker   the Ray head with the agent, and further Ray nodes; both run the same code by being the same image
#
# docker-compose.yml builds both. For GPUs, name the torch build and where it comes from:
#
#   docker compose build --build-arg TORCH=torch==2.13.0 --build-arg TORCH_INDEX_URL=… agent

FROM python:3.11-slim AS python
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp zhub
WORKDIR /app
# Named volumes take over the owner of the directory they are first mounted on.
RUN install -d -o zhub -g zhub /var/spool/zhub /var/cache/zhub

# The wheel, and one list of requirements for each image: so that a change of our code does not install torch again.
FROM python AS wheel
COPY pyproject.toml tools/docker/requirements.py ./
RUN python requirements.py api otel > /api.txt && python requirements.py workers otel > /workers.txt
COPY README.md ./
COPY platform platform
COPY workers workers
COPY api api
COPY migrations migrations
RUN pip wheel --no-deps --wheel-dir /wheel .

FROM python AS api
COPY constraints.txt ./
COPY --from=wheel /api.txt ./requirements.txt
RUN pip install --requirement requirements.txt --constraint constraints.txt
COPY --from=wheel /wheel /wheel
RUN pip install --no-deps /wheel/zhub-*.whl
USER zhub
# Uploads go through files here; they are larger than a container's memory should be.
ENV TMPDIR=/var/spool/zhub ZHUB_HOST=0.0.0.0
EXPOSE 8460
CMD ["python", "-m", "zhub_api"]

FROM python AS worker
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX_URL=
RUN pip install ${TORCH_INDEX_URL:+--index-url $TORCH_INDEX_URL} "$TORCH"
COPY constraints.txt ./
COPY --from=wheel /workers.txt ./requirements.txt
RUN pip install --requirement requirements.txt --constraint constraints.txt
COPY --chmod=755 tools/docker/ray-node /usr/local/bin/
COPY --from=wheel /wheel /wheel
RUN pip install --no-deps /wheel/zhub-*.whl
USER zhub
ENV ZHUB_CACHE_DIR=/var/cache/zhub ZHUB_SERVING_HOST=0.0.0.0
ENV ZHUB_READY_FILE=/tmp/agent.ready ZHUB_ALIVE_FILE=/tmp/agent.alive
EXPOSE 8461
CMD ["ray-node", "head"]
