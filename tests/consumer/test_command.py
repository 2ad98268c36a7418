"""`outbox-relay consume` runs a pipe as it runs a consumer, with a State beside it, and answers for both."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from outbox.testing.servers.ports import Port
from relay.cli.main import main
from tests.conftest import TopicFactory
from tests.consumer.conftest import StageFactory
from tests.consumer.pipes import Piped
from tests.consumer.stage import Stage, eventually

MODULE = """
from outbox import Event
from outbox.consumer import Pipe, State

KAFKA = {{"bootstrap.servers": "{bootstrap}", "statistics.interval.ms": 100}}
pipe = Pipe(group="{group}", kafka=KAFKA)


@pipe.on(topic="{source}")
def hand_on(out, value, record):
    out.send("{to}", record.key, value, {{"from": str(record.partition)}})


class Thing(Event, name="total.counted", version=1, topic="{source}", aggregate="thing", key="id"):
    id: str


state = State(Thing, kafka=KAFKA)
"""


@contextmanager
def consuming(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command at work on what stands in `directory`."""
    command = [sys.executable, "-m", "relay", "consume", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, cwd=directory, env=environment, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


def answer(port: int, path: str) -> tuple[int, str]:
    """(0, "") while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


@pytest.fixture
def port() -> Iterator[int]:
    """One on which nobody listens."""
    reserved = Port()
    yield reserved.number
    reserved.release()


@pytest.fixture
def piped(build: StageFactory, topic: TopicFactory, tmp_path: Path) -> Piped:
    stage: Stage = build(partitions=2)
    found = Piped(stage, topic("results", partitions=2))
    (tmp_path / "shop_totals.py").write_text(
        MODULE.format(bootstrap=stage.bootstrap, group=stage.group, source=stage.topic, to=found.to)
    )
    return found


def test_a_pipe_is_run_and_answers_probes_and_prometheus_with_a_state_beside_it(
    piped: Piped, port: int, tmp_path: Path
) -> None:
    piped.stage.send(6)
    arguments = ["--threads", "2", "--state", "shop_totals:state", "--health-address", str(port)]
    with consuming(tmp_path, "shop_totals:pipe", *arguments) as process:
        eventually(lambda: answer(port, "/readyz")[0] == 200)
        eventually(piped.all_there)
        labels = f'group="{piped.stage.group}",topic="{piped.stage.topic}",partition="0"'
        eventually(lambda: f"outbox_consumer_lag_records{{{labels}}} 0\n" in answer(port, "/metrics")[1])
        ready = json.loads(answer(port, "/readyz")[1])
        assert (ready["members"], [state["ready"] for state in ready["states"]]) == (2, [True])
        measured = answer(port, "/metrics")[1]
        # None of them is an event of the State: each is skipped and counted.
        assert f'outbox_state_skipped_records_total{{state="0",topics="{piped.stage.topic}"}} 6\n' in measured
        assert 'outbox_consumer_brokers_up{group="' in measured
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert piped.faults() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tests.consumer.test_command:MODULE"], "is no outbox.consumer.Consumer or outbox.consumer.Pipe"),
        (["shop_totals:pipe", "--partitions", "orders:0"], "the group gives a Pipe its partitions"),
        (["shop_totals:pipe", "--state", "shop_totals:pipe"], "is no outbox.consumer.State but of type Pipe"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    module = MODULE.format(bootstrap="127.0.0.1:1", group="g", source="from", to="to")
    (tmp_path / "shop_totals.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "shop_totals", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = CliRunner().invoke(main, ["consume", *arguments])
    assert found.exit_code == 2, (found.output, found.exception)
    assert said in found.output
