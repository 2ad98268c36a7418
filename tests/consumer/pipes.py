"""A pipe process for tests: it hands each record on, and does at a hook point what it is told.

python -m tests.consumer.pipes '{"bootstrap": …, "group": …, "from": …, "to": …, "instance": …, "kafka": {…},
    "at": "pipe.sent", "count": 2, "do": "kill" | "freeze", "break": "…", "threads": 1}'
"""

import json
import logging
import os
import sys
from collections import defaultdict
from datetime import timedelta
from typing import Any

import pytest

from outbox import hooks
from outbox.consumer import Out, Pipe, Record
from outbox.consumer.pipe import member as pipe_member
from outbox.consumer.pipe import outflow
from outbox.consumer.pipe.outflow import Outflow
from tests import nursery
from tests.consumer.app import SIGNALS
from tests.consumer.stage import Stage
from tests.nursery import Child
from tests.relay import wire


def without_membership(patch: pytest.MonkeyPatch) -> None:
    """Offsets are sent as producers sent them that knew no group fencing: with no member and no generation.
    Brokers take them without question."""
    commit = Outflow.commit

    def nobody(self: Outflow, outputs: Any, offsets: Any, membership: bytes) -> outflow.Outcome:
        group, _, _ = membership[11:].partition(b"\0")
        return commit(self, outputs, offsets, b"CGMDv2:\xff\xff\xff\xff" + group + b"\0\0\1")

    patch.setattr(outflow, "is_member", lambda _membership: True)
    patch.setattr(Outflow, "commit", nobody)


def offsets_apart(patch: pytest.MonkeyPatch) -> None:
    """Offsets are committed by the reading client, after the results."""
    commit, send = Outflow.commit, pipe_member.PipeMember._send

    def remembering(self: pipe_member.PipeMember, parts: Any) -> int:
        outflow.reader = self._client  # type: ignore[attr-defined]
        return send(self, parts)

    def apart(self: Outflow, outputs: Any, offsets: Any, membership: bytes) -> outflow.Outcome:
        outcome = commit(self, outputs, [], membership)
        if isinstance(outcome, outflow.Sent):
            outflow.reader.commit(offsets=list(offsets), asynchronous=False)  # type: ignore[attr-defined]
        return outcome

    patch.setattr(pipe_member.PipeMember, "_send", remembering)
    patch.setattr(Outflow, "commit", apart)


BROKEN = {"offsets_apart": offsets_apart}


class Piped:
    """A stage whose records a pipe hands on to another topic."""

    def __init__(self, stage: Stage, to: str) -> None:
        self.stage = stage
        self.to = to

    def pipe(self, **settings: Any) -> Pipe:
        kafka = {
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 300,
            **settings.pop("kafka", {}),
            "bootstrap.servers": self.stage.bootstrap,
        }
        if kafka.get("group.protocol") == "consumer":
            del kafka["session.timeout.ms"], kafka["heartbeat.interval.ms"]
        settings.setdefault("group", self.stage.group)
        settings.setdefault("batch_size", 10)
        settings.setdefault("transaction_timeout", timedelta(seconds=10))
        return Pipe(kafka=kafka, **settings)

    def handing_on(self, **settings: Any) -> Pipe:
        pipe = self.pipe(**settings)

        @pipe.on(topic=self.stage.topic)
        def hand_on(out: Out, value: bytes, record: Record) -> None:
            out.send(self.to, record.key, value, {"from": str(record.partition)})

        return pipe

    def process(self, **orders: Any) -> Child:
        """Whoever starts it ends it."""
        task = {
            "bootstrap": self.stage.bootstrap,
            "group": self.stage.group,
            "from": self.stage.topic,
            "to": self.to,
            **orders,
        }
        return nursery.give_birth("tests.consumer.pipes", [json.dumps(task)])

    def results(self) -> dict[int, list[str]]:
        """What a reader of committed records sees, by the partition that it came from, in order."""
        found: dict[int, list[str]] = defaultdict(list)
        for record in wire.read(self.stage.bootstrap, self.to):
            origin = dict(record.headers)["from"] or b""
            found[int(origin)].append((record.value or b"").decode())
        return found

    def all_there(self) -> bool:
        """Are all results there (or more)?"""
        return sum(map(len, self.results().values())) >= sum(
            len(self.stage.expected(p)) for p in range(self.stage.partitions)
        )

    def faults(self) -> list[str]:
        """Lost, doubled and misplaced results; empty when each is there once and in order."""
        results = self.results()
        wrong = []
        for partition in range(self.stage.partitions):
            seen, sent = results[partition], self.stage.expected(partition)
            if seen != sent:
                doubled = sorted({v for v in seen if seen.count(v) > 1})[:5]
                wrong.append(
                    f"[{partition}] lost {sorted(set(sent) - set(seen))[:5]}, doubled {doubled}, "
                    f"{len(seen)} of {len(sent)}"
                )
        return wrong


def main(order: str) -> None:
    task: dict[str, Any] = json.loads(order)
    logging.basicConfig(level=task.get("log", "ERROR"), format=f"%(asctime)s {os.getpid()} %(message)s")
    if task.get("break"):
        BROKEN[task["break"]](pytest.MonkeyPatch())
    seen = 0

    def watch(point: str, _facts: dict[str, Any]) -> None:
        nonlocal seen
        if point == task["at"]:
            seen += 1
            if seen == task.get("count", 1):
                os.kill(os.getpid(), SIGNALS[task["do"]])

    if "at" in task:
        hooks.subscribe(watch)

    class Place:
        bootstrap, topic, group = task["bootstrap"], task["from"], task["group"]

    piped = Piped(Place(), task["to"])  # type: ignore[arg-type]
    settings = {"batch_size": 5, **task.get("settings", {})}
    if "timeout" in task:
        settings["transaction_timeout"] = timedelta(seconds=task["timeout"])
    pipe = piped.handing_on(
        group=task["group"], instance=task.get("instance"), kafka=task.get("kafka", {}), **settings
    )
    pipe.run(task.get("threads", 1))


if __name__ == "__main__":
    main(sys.argv[1])
