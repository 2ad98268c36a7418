"""What `outbox-relay consume` answers over HTTP: is it live, is it ready, what does it measure."""

import json
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from outbox.consumer import Health, StateHealth
from relay.telemetry import consumer_metrics
from relay.telemetry.health import Answer
from relay.telemetry.metrics import CONTENT_TYPE


class ConsumerPages:
    """The answers, without HTTP. `observe`: health of a Consumer or Pipe; `states`: of each State beside."""

    def __init__(
        self, observe: Callable[[], Health], states: Sequence[Callable[[], StateHealth]] = ()
    ) -> None:
        self._observe = observe
        self._states = states

    def answer(self, path: str) -> Answer | None:
        """Status, content type and body; None for a page that is not there."""
        match path:
            case "/healthz":
                return HTTPStatus.OK, "text/plain; charset=utf-8", "ok\n"
            case "/readyz":
                return self._ready()
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE, consumer_metrics.page(self._observe(), self._of_states())
            case _:
                return None

    def _of_states(self) -> list[StateHealth]:
        return [observe() for observe in self._states]

    def _ready(self) -> Answer:
        """Ready: every member works, no partition is stopped or stuck, every State has caught up; else what
        is wrong, in words."""
        health, states = self._observe(), self._of_states()
        ready = health.ok and all(state.ready for state in states)
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
            "ready": ready,
            "group": health.group,
            "members": len(health.members),
            "lag": health.lag,
            "trouble": sorted({text for member in health.members for text in member.trouble}),
            "partitions": wrong,
            "states": [
                {"topics": state.topics, "ready": state.ready, "lag": state.lag, "trouble": state.trouble}
                for state in states
            ],
        }
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return status, "application/json", json.dumps(body) + "\n"
