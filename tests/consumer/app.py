"""A consumer process for tests: it stores effects, and does at a hook point what it is told.

python -m tests.consumer.app '{"url": …, "bootstrap": …, "group": …, "topic": …, "kafka": {…},
    "at": "consumer.batch.before_commit", "count": 2, "do": "kill" | "freeze", "break": "…",
    "deadly": "0.3", "endless": "0.4", "limit": 0.5, "retry": 0.01, "dedupe": "event_id"}'
"""

import json
import logging
import os
import random
import signal
import sys
from datetime import timedelta
from typing import Any

from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import Session

from outbox import hooks
from outbox.consumer import Record
from outbox.errors import Retry
from tests.consumer import broken
from tests.consumer.stage import Stage

SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


def main(order: str) -> None:
    task: dict[str, Any] = json.loads(order)
    logging.basicConfig(level=task.get("log", "ERROR"), format=f"%(asctime)s {os.getpid()} %(message)s")
    if task.get("break"):
        broken.apply(task["break"])
    seen = 0

    def watch(point: str, _facts: dict[str, Any]) -> None:
        nonlocal seen
        if point == task["at"]:
            seen += 1
            if seen == task.get("count", 1):
                os.kill(os.getpid(), SIGNALS[task["do"]])

    if "at" in task:
        hooks.subscribe(watch)
    url = make_url(task["url"]).set(drivername="postgresql+psycopg")
    engine = create_engine(url, pool_pre_ping=False, connect_args={"connect_timeout": 5})
    stage = Stage(
        engine, task["url"], task["bootstrap"], task["topic"], 0, new=False, kind=task.get("kind", "plain")
    )
    settings = task.get("settings", {})
    if "limit" in task:
        settings["handler_limit"] = timedelta(seconds=task["limit"])
    consumer = stage.consumer(task.get("kafka"), group=task["group"], **settings)

    @consumer.on(topic=task["topic"], dedupe=task.get("dedupe"))
    def store(session: Session, value: bytes, record: Record) -> None:
        if value.decode() == task.get("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        while value.decode() == task.get("endless"):
            pass
        stage.store(session, record, task["group"], os.getpid())
        if random.random() < task.get("retry", 0):
            raise Retry("not now", after=timedelta(milliseconds=50))

    partitions = [(topic, number) for topic, number in task["partitions"]] if "partitions" in task else None
    consumer.run(task.get("threads", 1), partitions=partitions)


if __name__ == "__main__":
    main(sys.argv[1])
