"""What an orchestrator and Prometheus are told over HTTP, and what nobody is told."""

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from outbox.errors import ConfigurationError
from outbox.testing.servers import KafkaBroker, ServerUnavailable
from relay.config import RelayConfig
from relay.telemetry import health, metrics
from relay.telemetry.backlog import ShardBacklog
from relay.telemetry.health import Health, Pages
from relay.telemetry.metrics import Observed
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene, until

Get = Callable[[str], tuple[int, str]]


def observed(database: str = "shop", **status: Any) -> Observed:
    """A relay that carries two shards of one database."""
    told = {"state": "carrying", "alarm": None, "published": 7, **status}
    parts = {0: {**told, "acknowledged_at": 1234.5}, 1: told}
    shards = (
        ShardBacklog(0, 3, "me", True, 12, 4.25, 2),
        ShardBacklog(1, 1, None, False, 100_000, None, more=True),
    )
    return Observed(database=database, status={**told, "shards": parts}, shards=shards)


@pytest.fixture
def serve() -> Iterator[Callable[..., Get]]:
    running: list[Health] = []

    def one(*databases: Observed) -> Get:
        running.append(Health("0", Pages(lambda: databases)))
        running[-1].start()
        return getter(running[-1].port)

    yield one
    for server in running:
        server.close()


def getter(port: int) -> Get:
    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    return get


def test_several_databases_share_one_page_by_label(serve: Callable[..., Get]) -> None:
    status, page = serve(observed("shop"), observed('odd"name\\'))("/metrics")
    assert status == 200
    assert 'outbox_pending_events{database="shop",shard="0"} 12\n' in page
    assert 'outbox_pending_events{database="shop",shard="1"} 100000\n' in page
    assert 'outbox_oldest_pending_age_seconds{database="shop",shard="0"} 4.25\n' in page
    assert 'outbox_relay_published_events_total{database="odd\\"name\\\\"} 7\n' in page
    assert page.count("# TYPE outbox_pending_events gauge\n") == 1


def test_prometheus_own_judge_finds_no_fault_with_the_page() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        raise ServerUnavailable(
            "promtool", "promtool is not on this machine (Debian: apt install prometheus)"
        )
    judged = subprocess.run(
        [promtool, "check", "metrics"],
        input=metrics.page([observed("shop"), observed("crm")]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (judged.returncode, judged.stdout + judged.stderr) == (0, "")


@pytest.mark.parametrize(
    ("state", "ready"), [("carrying", 200), ("standby", 200), ("waiting", 503), ("halted", 503)]
)
def test_ready_is_who_carries_or_stands_by_and_the_cause_is_named(
    serve: Callable[..., Get], state: str, ready: int
) -> None:
    get = serve(observed("shop"), observed("crm", state=state, alarm="because"))
    status, body = get("/readyz")
    assert status == ready
    assert json.loads(body)["databases"]["crm"] == {"state": state, "alarm": "because"}
    assert get("/healthz") == (200, "ok\n"), "who restarts a relay cannot mend its broker"


def test_nothing_else_is_to_be_had(serve: Callable[..., Get]) -> None:
    get = serve(observed())
    assert get("/")[0] == 404
    assert get("/metrics/../etc/passwd")[0] == 404
    assert get("/metrics?debug=1")[0] == 200


def test_a_client_that_says_nothing_keeps_nobody_waiting(serve: Callable[..., Get]) -> None:
    server = Health("127.0.0.1:0", Pages(lambda: [observed()]))
    server.start()
    with closing(server):
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        assert getter(server.port)("/healthz") == (200, "ok\n")
        for line in silent:
            line.close()


def test_a_port_alone_binds_loopback_and_nothing_is_bound_unasked() -> None:
    assert health.address("9464") == ("127.0.0.1", 9464)
    assert health.address("0.0.0.0:9464") == ("0.0.0.0", 9464)
    assert health.address("[::1]:9464") == ("::1", 9464)
    settings: dict[str, Any] = {"database_url": "postgresql://db/shop", "kafka_bootstrap_servers": "k:1"}
    assert RelayConfig.load(**settings).health_address is None
    with pytest.raises(ConfigurationError, match="write a port"):
        RelayConfig.load(**settings, health_address="here")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigurationError, match="OUTBOX_HEALTH_ADDRESS"):
            Health(str(taken.getsockname()[1]), Pages(lambda: [observed()]))


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_a_daemon_tells_how_far_it_is_and_what_keeps_it(
    scene: Scene, start: StartRelay, broker: KafkaBroker, port: int
) -> None:
    get = getter(port)
    relay = start(health_address=port, pending_alarm="1", sabotage="impatient")
    scene.write(25)
    scene.wait_until_through()

    def shows(*lines: str) -> None:
        until(lambda: all(line in get("/metrics")[1] for line in lines), 20, lambda: get("/metrics")[1])

    labels = f'database="{scene.database.rpartition("/")[2]}"'
    shows(f"outbox_relay_published_events_total{{{labels}}} 25\n")
    shows(f'outbox_pending_events{{{labels},shard="0"}} 0\n', f"outbox_relay_alarm{{{labels}}} 0\n")
    assert get("/readyz")[0] == 200
    broker.kill()
    scene.write(10)
    shows(f'outbox_pending_events{{{labels},shard="0"}} 10\n', f"outbox_relay_alarm{{{labels}}} 1\n")
    until(lambda: get("/readyz")[0] == 503, 20, lambda: relay.log)
    assert "broker" in get("/readyz")[1]
    assert get("/healthz") == (200, "ok\n")
    broker.start()
    until(lambda: get("/readyz")[0] == 200, 60, lambda: get("/readyz")[1])
    scene.wait_until_through(60)
    shows(f"outbox_relay_published_events_total{{{labels}}} 35\n", f"outbox_relay_alarm{{{labels}}} 0\n")
    assert relay.stop() == 0
    with pytest.raises(urllib.error.URLError):
        get("/healthz")
