# syntax=docker/dockerfile:1
# Two images from one file:
#   docker build --target api    -t graft-api .      slim, no torch: the HTTP service and the migrations
#   docker build --target worker -t graft-worker .   torch with its CUDA libraries: control and trial workers

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
# The volume of /var/lib/graft takes its owner and folders from here when it is first mounted. Large temporary files go
# there too: /tmp may be memory.
RUN groupadd --gid 10001 graft \
    && useradd --uid 10001 --gid graft --home-dir /var/lib/graft --no-create-home --shell /usr/sbin/nologin graft \
    && install --directory --owner graft --group graft --mode 0700 /var/lib/graft /var/lib/graft/tmp
ENV PATH=/opt/graft/venv/bin:$PATH \
    PYTHONPATH=/opt/graft/src \
    HOME=/var/lib/graft \
    TMPDIR=/var/lib/graft/tmp \
    GRAFT_HOME=/var/lib/graft
WORKDIR /opt/graft/src

FROM base AS api-packages
COPY requirements/server.lock /tmp/server.lock
RUN python -m venv /opt/graft/venv \
    && pip install --require-hashes --only-binary :all: --requirement /tmp/server.lock

FROM base AS worker-packages
COPY requirements/worker.lock /tmp/worker.lock
# Wheels only: a source distribution would want a compiler in the image.
RUN python -m venv /opt/graft/venv \
    && pip install --require-hashes --only-binary :all: --requirement /tmp/worker.lock

FROM base AS api
COPY --from=api-packages /opt/graft/venv /opt/graft/venv
COPY LICENSE pyproject.toml ./
COPY domain ./domain
COPY store ./store
COPY migrations ./migrations
COPY intake ./intake
COPY api ./api
# The packages run from here without being installed; this tells importlib.metadata which version they are.
RUN python -c "import pathlib, tomllib; v = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']['version']; d = pathlib.Path(f'graft_automl-{v}.dist-info'); d.mkdir(); (d / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: graft-automl\nVersion: {v}\n')" \
    && python -m compileall -q .
USER graft
ENV GRAFT_HOST=0.0.0.0 \
    GRAFT_PORT=8321
EXPOSE 8321
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['GRAFT_PORT'] + '/healthz', timeout=4)"]
CMD ["python", "-m", "api"]

FROM base AS worker
COPY --from=worker-packages /opt/graft/venv /opt/graft/venv
COPY LICENSE pyproject.toml ./
COPY domain ./domain
COPY store ./store
COPY migrations ./migrations
COPY intake ./intake
COPY models ./models
COPY transfer ./transfer
COPY search ./search
COPY worker ./worker
COPY graft ./graft
RUN python -c "import pathlib, tomllib; v = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']['version']; d = pathlib.Path(f'graft_automl-{v}.dist-info'); d.mkdir(); (d / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: graft-automl\nVersion: {v}\n')" \
    && python -m compileall -q .
USER graft
# Torch brings its CUDA libraries; the host brings the driver, through the NVIDIA container toolkit.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    OMP_NUM_THREADS=1
CMD ["python", "-m", "worker", "--queue", "trials"]
