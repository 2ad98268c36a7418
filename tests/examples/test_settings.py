"""A missing or impossible setting is named before anything starts."""

import subprocess
import sys

import pytest

from examples.order_service.settings import SettingError, database_url, kafka, shared_name


def test_any_postgresql_url_is_reached_through_psycopg_3(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("postgresql://ann@db/orders", "postgresql+psycopg2://ann@db/orders"):
        monkeypatch.setenv("ORDER_DATABASE_URL", url)
        assert str(database_url("ORDER_DATABASE_URL")) == "postgresql+psycopg://ann@db/orders"


@pytest.mark.parametrize("value", ["", "  ", "orders", "mysql://db/orders", "postgresql://db:port/orders"])
def test_a_database_url_that_cannot_be_meant_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ORDER_DATABASE_URL", value)
    with pytest.raises(SettingError, match=r"ORDER_DATABASE_URL is not .*postgresql://"):
        database_url("ORDER_DATABASE_URL")


def test_the_clients_patience_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker:9092")
    monkeypatch.setenv("KAFKA_SESSION_TIMEOUT_MS", "6000")
    monkeypatch.setenv("KAFKA_HOME", "/opt/kafka")
    assert kafka() == {"bootstrap.servers": "broker:9092", "session.timeout.ms": "6000"}


def test_names_on_a_shared_cluster_begin_with_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_PREFIX", raising=False)
    assert shared_name("orders") == "orders"
    monkeypatch.setenv("KAFKA_PREFIX", "ann.")
    assert shared_name("orders") == "ann.orders"


@pytest.mark.parametrize("service", ["order", "invoice", "shipping"])
def test_a_service_without_its_settings_ends_with_one_line(service: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.order_service.{service}"],
        env={},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"{service}: {service.upper()}_DATABASE_URL is not set; "
        "give it a value such as postgresql://localhost/orders\n"
    )
