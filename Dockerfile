# syntax=docker/dockerfile:1

# Stage 1: the locked dependencies, in a virtual environment without pip. With traces: --build-arg REQUIREMENTS=requirements-otel.txt
FROM python:3.13-slim AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
ARG REQUIREMENTS=requirements.txt
COPY ${REQUIREMENTS} /tmp/requirements.txt
RUN python -m venv --without-pip /venv \
 && python -m pip --python /venv/bin/python install --require-hashes --only-binary :all: -r /tmp/requirements.txt \
 && /venv/bin/python -m compileall -q /venv

# Stage 2: the image that runs. No compiler, no pip, only what Python imports.
FROM python:3.13-slim
RUN python -m pip uninstall --yes --quiet pip 2>/dev/null || true
COPY --from=dependencies /venv /venv
WORKDIR /app
COPY manage.py ./
COPY messages_project ./messages_project
COPY messaging ./messaging
# The user below must be able to read the sources, whatever umask they were checked out with.
RUN chmod -R a+rX /app && /venv/bin/python -m compileall -q /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 BIND=0.0.0.0 PORT=8000
# A number, so that an orchestrator can verify that it is not root.
USER 10001:10001
EXPOSE 8000
# Only whether the process answers: an unavailable database needs no restart, and /readyz reports it.
HEALTHCHECK --interval=10s --timeout=4s --start-period=60s --retries=3 \
    CMD ["python", "-m", "messages_project.healthcheck"]
CMD ["python", "-m", "messages_project"]
