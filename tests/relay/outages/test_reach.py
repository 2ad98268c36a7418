"""Shards are carried from where Kafka can be reached; a host that is cut off takes none and says why."""

import time
from pathlib import Path

import pytest

from outbox.errors import ConfigurationError
from outbox.testing.servers.certificates import Authority
from relay import reach
from relay.reach import Reach
from relay.share import Reaching
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene, until
from tests.relay.sharding.several import split

ALL_OF_THE_FIRST = "SELECT bool_and(owner IS NOT DISTINCT FROM 'relay-1') FROM outbox_lease"


def test_a_relay_that_never_reached_kafka_takes_no_shard_that_another_carries(
    scene: Scene, start: StartRelay
) -> None:
    split(scene.database, 2)
    scene.write(50, keys=20)
    able = start()
    scene.wait(ALL_OF_THE_FIRST)
    cut_off = start(kafka_bootstrap_servers="127.0.0.1:1")
    alarmed = "SELECT state->>'alarm' LIKE 'no broker answers at 127.0.0.1:1:%%' FROM outbox_relay"
    scene.wait(f"{alarmed} WHERE instance = 'relay-2'", within=60)
    assert scene.value(ALL_OF_THE_FIRST) is True
    scene.wait_until_through()
    assert cut_off.log.count("WARNING relay.reach: no broker answers") == 1
    assert (cut_off.stop(), able.stop()) == (0, 0)
    assert scene.complaints() == []


def test_an_answer_holds_for_a_while_and_silence_counts_from_the_last_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[None] = []
    one = Reach({"bootstrap.servers": scene.bootstrap}, heard=lambda: heard.append(None))
    one.run_once()
    assert one.reaching is Reaching.NOT_NOW, "unknown is no yes"
    until(lambda: bool(heard), 30, lambda: str(one.trouble))
    one.run_once()
    assert (one.reaching, one.trouble) == (Reaching.YES, None)
    now = time.monotonic()
    for passed, expected in [
        (reach.RECENT - 1, Reaching.YES),
        (reach.RECENT + 1, Reaching.NOT_NOW),
        (reach.PATIENCE + 1, Reaching.NOT_FOR_LONG),
    ]:
        monkeypatch.setattr("relay.reach.time.monotonic", lambda passed=passed: now + passed)
        assert one.reaching is expected
    one.close()


def test_a_client_that_cannot_be_made_anew_is_made_later_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reach, "ANSWER_WITHIN", 0.2)
    now = 1000.0
    monkeypatch.setattr("relay.reach.time.monotonic", lambda: now)
    certificate = Authority(tmp_path).certificate
    issued = certificate.read_text()
    settings = {"security.protocol": "ssl", "ssl.ca.location": str(certificate)}
    heard: list[None] = []
    one = Reach({"bootstrap.servers": "127.0.0.1:1", **settings}, heard=lambda: heard.append(None))
    one.run_once()
    until(lambda: bool(heard), 30, lambda: "no end of the question")
    one.run_once()
    assert "no broker answers" in str(one.trouble)
    certificate.write_text(issued[:200])
    now += reach.EVERY
    one.run_once()
    assert "no client to ask the brokers with" in str(one.trouble)
    certificate.write_text(issued)
    now += reach.EVERY
    one.run_once()
    until(lambda: len(heard) == 2, 30, lambda: "it does not ask again")
    one.close()


def test_settings_with_which_nobody_could_ask_are_for_an_operator_to_mend() -> None:
    with pytest.raises(ConfigurationError, match="correct"):
        Reach({"bootstrap.servers": "k:1", "security.protocol": "nonsense"}, heard=lambda: None).run_once()
