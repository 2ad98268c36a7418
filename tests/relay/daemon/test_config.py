"""Settings come from argument, environment, file, default, in this order, and what cannot work is refused."""

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from outbox.errors import ConfigurationError
from relay.config import RelayConfig
from relay.producers.properties import REFUSED, REQUIRED, checked

URL = "postgresql://relay:s3cret@db:5432/shop"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("OUTBOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def config(text: str = "", **arguments: Any) -> RelayConfig:
    Path("outbox-relay.toml").write_text(text)
    given = {"database_url": URL, "kafka_bootstrap_servers": "k:9092", **arguments}
    return RelayConfig.load(**given)


def test_an_argument_beats_the_environment_beats_the_file_beats_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert config().lease == timedelta(seconds=5)
    assert config("lease = 6").lease == timedelta(seconds=6)
    monkeypatch.setenv("OUTBOX_LEASE", "7")
    assert config("lease = 6").lease == timedelta(seconds=7)
    assert config("lease = 6", lease=timedelta(seconds=8)).lease == timedelta(seconds=8)


@pytest.mark.parametrize(
    "file",
    [
        '[kafka]\n"sasl.username" = "file"',
        '[kafka]\nsasl.username = "file"',
        '[kafka.sasl]\nusername = "file"',
        '[kafka]\nsasl_username = "file"',
    ],
)
def test_one_kafka_property_is_the_same_however_it_is_spelt(
    monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    assert config(file).kafka == {"sasl.username": "file"}
    monkeypatch.setenv("OUTBOX_KAFKA__SASL_USERNAME", "environment")
    assert config(file).kafka == {"sasl.username": "environment"}
    assert config(file, kafka={"sasl.username": "argument"}).kafka == {"sasl.username": "argument"}


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("envelope", "avro", "'outbox', 'cloudevents' or 'debezium'"),
        ("cloudevents_source", "", "must be a URI"),
        ("cloudevents_source", "/my shop", "must be a URI"),
        ("cloudevents_source", "/" + "s" * 200, "at most 200 characters"),
    ],
)
def test_an_envelope_that_nobody_could_read_is_refused(setting: str, value: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s){setting}.*{said}"):
        config(**{setting: value})


@pytest.mark.parametrize("password", ["1e5", "007", "true", "null", '"quoted"', "{}", "a=b"])
def test_a_password_in_the_environment_is_taken_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv("OUTBOX_KAFKA__SASL_PASSWORD", password)
    assert config().kafka_properties["sasl.password"] == password


def test_all_kafka_properties_may_come_as_one_json_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_KAFKA", '{"linger.ms": 5}')
    assert config().kafka == {"linger.ms": 5}


@pytest.mark.parametrize(("written", "seconds"), [("5", 5), ("0.25", 0.25), ("PT1M", 60), ("00:00:03", 3)])
def test_durations_are_seconds_or_iso_8601(
    monkeypatch: pytest.MonkeyPatch, written: str, seconds: float
) -> None:
    monkeypatch.setenv("OUTBOX_LEASE", written)
    assert config().lease == timedelta(seconds=seconds)


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_what_breaks_a_guarantee_is_refused_with_the_reason(name: str) -> None:
    value, reason = REQUIRED[name]
    with pytest.raises(ConfigurationError, match=r"is refused: .*; it stays") as refused:
        config(kafka={name: "1"})
    assert reason in str(refused.value)
    assert config(kafka={name: value}).kafka == {name: value}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_the_relay_decides_itself_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        config(kafka={name: "1"})
    assert REFUSED[name] in str(refused.value)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("[kafka]\ncompresion.type = 'lz4'", "compresion.type"),
        ("[kafka]\ncompression.type = 'zip'", "zip"),
        ("[kafka]\nmax.in.flight = 10", "max.in.flight"),
        ("[kafka]\nsecurity.protocol = 'sasl_ssl'\nsasl.mechanism = 'NOPE'", "NOPE"),
        ("[kafka]\nsecurity.protocol = 'ssl'\nssl.ca.location = '/nowhere'", "ssl.ca.location"),
        ("[kafka]\nlinger.ms = [1]", "linger.ms is a list"),
        ("kafka = 3", "kafka: "),
        ("lesse = 3", "lesse is no setting"),
        ("lease = 'soon'", "lease: is no duration"),
        ("lease = 0", "lease: must be longer than nothing"),
        ("lease = 0.01", "lease: must be 0.1 s at least"),
        ("lease = 601", "lease: must be 10 min at most: for so long a dead relay has no successor"),
        ("instance = ''", "instance: "),
        ("retention = -1", "retention: must not be negative"),
        ("chunk_rows = 0", "chunk_rows: "),
        ("lease = ", "outbox-relay.toml cannot be read"),
    ],
)
def test_what_cannot_work_is_named_when_the_settings_are_read(file: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        config(file)
    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("url", ["mysql://a:s3cret@db/shop", "nonsense s3cret", "http://s3cret@h"])
def test_a_malformed_url_is_shown_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError, match="it should look like postgresql://") as refused:
        config(database_url=url)
    assert "s3cret" not in str(refused.value)


def test_settings_show_no_secret() -> None:
    shown = config("[kafka]\nsasl.password = 's3cret'")
    assert "s3cret" not in repr(shown)
    assert "s3cret" not in str(shown)


def test_a_misspelt_variable_is_pointed_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OUTBOX_LEESE", "3")
    monkeypatch.setenv("OUTBOX_CACHE", "/somewhere")
    with caplog.at_level(logging.WARNING):
        config()
    assert [record.getMessage() for record in caplog.records] == [
        "environment variable OUTBOX_LEESE is no setting and ignored; is it OUTBOX_LEASE?"
    ]


def test_the_client_takes_all_that_is_set_for_it() -> None:
    Producer(checked({"bootstrap.servers": "127.0.0.1:1"}))
