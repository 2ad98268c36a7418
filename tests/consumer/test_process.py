"""A consumer process stops when asked, after the batch under way, and says how it ended."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.consumer.stage import ROOT, Stage

MODULE = """
import json, os
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from outbox.consumer import Consumer

consumer = Consumer(
    group=os.environ["GROUP"], sessions=sessionmaker(create_engine(os.environ["URL"])),
    kafka={"bootstrap.servers": os.environ["BOOTSTRAP"]},
)

@consumer.on(topic=os.environ["TOPIC"])
def store(session, value, record):
    from sqlalchemy import text
    session.execute(
        text("INSERT INTO effect (grp, partition, value) VALUES (:g, :p, :v)"),
        {"g": os.environ["GROUP"], "p": record.partition, "v": value.decode()},
    )
"""


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_applies_events_until_a_signal_and_exits_with_zero(
    stage: Stage, tmp_path: Path, protocol: str, number: signal.Signals
) -> None:
    (tmp_path / "billing.py").write_text(MODULE)
    stage.send(30)
    command = "from relay.cli.consume import consume; consume()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "billing:consumer", "--threads", "2", "--group-protocol", protocol],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(ROOT),
            "GROUP": stage.group,
            "URL": stage.engine.url.render_as_string(hide_password=False),
            "BOOTSTRAP": stage.bootstrap,
            "TOPIC": stage.topic,
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stage.wait()
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    assert (process.returncode, stderr) == (0, "")
    assert stage.faults() == []
