"""What `outbox-relay consume` answers over HTTP: is it live, is it ready, what does it measure."""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from outbox.consumer import Health
from relay.telemetry import consumer_metrics
from relay.telemetry.health import Answer
from relay.telemetry.metrics import CONTENT_TYPE


class ConsumerPages:
    """The answers, without HTTP. `observe`: Consumer.health."""

    def __init__(self, observe: Callable[[], Health]) -> None:
        self._observe = observe

    def answer(self, path: str) -> Answer | None:
        """Status, content type and body; None for a page that is not there."""
        match path:
            case "/healthz":
                return HTTPStatus.OK, "text/plain; charset=utf-8", "ok\n"
            case "/readyz":
                return self._ready()
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE, consumer_metrics.page(self._observe())
            case _:
                return None

    def _ready(self) -> Answer:
        """Ready: every member works, and no partition is stopped or stuck; else what is wrong, in words."""
        health = self._observe()
        wrong: list[dict[str, Any]] = [
            {
                "topic": partition.topic,
                "partition": partition.partition,
                "status": partition.status.value,
                "reason": partition.reason,
            }
            for partition in (*health.stopped, *health.stuck)
        ]
        body = {
            "ready": health.ok,
            "group": health.group,
            "members": len(health.members),
            "lag": health.lag,
            "trouble": sorted({text for member in health.members for text in member.trouble}),
            "partitions": wrong,
        }
        status = HTTPStatus.OK if health.ok else HTTPStatus.SERVICE_UNAVAILABLE
        return status, "application/json", json.dumps(body) + "\n"
