"""A consumer process stops when asked, after the batch under way, and says how it ended."""

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.consumer.stage import ROOT, Stage, eventually

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


@contextmanager
def consuming(stage: Stage, directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`outbox-relay consume` with these arguments."""
    (directory / "billing.py").write_text(MODULE)
    command = "from relay.cli.consume import consume; consume()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "billing:consumer", *arguments],
        cwd=directory,
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
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_applies_events_until_a_signal_and_exits_with_zero(
    stage: Stage, tmp_path: Path, protocol: str, number: signal.Signals
) -> None:
    stage.send(30)
    with consuming(stage, tmp_path, "--threads", "2", "--group-protocol", protocol) as process:
        stage.wait()
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (0, "")
    assert stage.faults() == []


def test_the_command_reads_the_partitions_it_is_given_and_answers_probes(
    stage: Stage, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stage.send(30)
    given = ["--partitions", f"{stage.topic}:0,2", "--health-address", str(port)]
    with consuming(stage, tmp_path, *given) as process:
        eventually(lambda: len(stage.effects()) == 20)
        assert "outbox_consumer_applied_records_total" in page(port, "/metrics")
        assert json.loads(eventually(lambda: page(port, "/readyz")))["group"] == stage.group
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (0, "")
    assert stage.offset(1) == -1


def page(port: int, path: str) -> str:
    """Empty while it is not well."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError:
        return ""
