"""The benchmarks still run; what they measure is `make bench`'s business."""

import json

import pytest

from benchmarks.__main__ import main
from outbox.testing.servers import KafkaServer, PostgresServer

PARTS = ["drain", "modes", "latency", "storage", "emit", "consume"]
"""What no other part is a variation of."""


def test_every_benchmark_measures_something(
    postgres: PostgresServer,
    kafka: KafkaServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", postgres.url)
    monkeypatch.setenv("OUTBOX_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap)

    assert main(["--quick", "--json", "--events", "3000", "--seconds", "0.5", "--only", ",".join(PARTS)]) == 0

    found = json.loads(capsys.readouterr().out)
    assert list(found["benchmarks"]) == PARTS
    for benchmark in found["benchmarks"].values():
        assert all(figure["median"] > 0 or figure["unit"] == "tuples" for figure in benchmark["figures"])
    assert {"cores", "postgres", "kafka"} <= found["machine"].keys()


def test_a_benchmark_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "drian"])
    assert ended.value.code == 2
    assert "drian" in capsys.readouterr().err
