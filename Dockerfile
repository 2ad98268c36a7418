# One image for the relay and the example services: the pinned versions of the lock, without the tools of development.
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app

# Hashes out: pip allows them for a closed list only, and this installs a part of the lock.
COPY requirements.lock .
RUN sed -E '/^ *--hash=/d; s/ \\$//' requirements.lock > /tmp/constraints.txt

COPY pyproject.toml README.md LICENSE ./
COPY outbox outbox
COPY relay relay
COPY migrations migrations
RUN pip install --constraint /tmp/constraints.txt '.[demo]'
COPY examples examples

RUN useradd --system --no-create-home outbox
USER outbox
CMD ["outbox-relay", "run"]
