"""`python -m tests.relay.outages [--seconds 600] [--frozen]`: Kafka away for long, under writers.

Prints what the relay took from the machine meanwhile and how soon it had caught up; exit 1 when an outage
cost more than a resting relay may, or an event.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from outbox.storage import ddl
from outbox.testing.servers import start_kafka, start_postgres
from tests.conftest import create_engine
from tests.relay.outages.strain import Strain, resident
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene, until

EVERY = 10.0
"""Seconds between two lines that say how it stands."""


def outage(seconds: float, *, frozen: bool) -> list[str]:
    """What was wrong, in words."""
    with start_postgres(own=True) as server, start_kafka(own=True) as kafka:
        engine = create_engine(url := server.database("shop"))
        with engine.begin() as connection:
            ddl.apply(connection)
        engine.dispose()
        topic, (broker,) = kafka.create_topic("events", 6), kafka.brokers
        log = Path(tempfile.mkdtemp()) / "relay.log"
        with Scene(url, kafka.bootstrap, topic, OUTBOX_INSTANCE="relay-1", OUTBOX_LEASE="5") as scene:
            with RelayProcess(scene.settings, log) as relay:
                scene.write(500)
                scene.wait_until_through()
                broker.pause() if frozen else broker.kill()
                scene.write(500)
                until(lambda: bool(scene.status("relay-1").get("alarm")), 60, lambda: relay.log)
                strain, wrong = Strain(relay), []
                end = said = time.monotonic()
                end += seconds
                while time.monotonic() < end:
                    scene.write(500, pad=512)
                    time.sleep(0.5)
                    if time.monotonic() - said > EVERY:
                        said = time.monotonic()
                        _say(f"{end - said:.0f} s left, {resident(relay.pid)} MB, {strain.said()}")
                wrong += strain.faults()
                waiting = int(scene.value("SELECT count(*) FROM outbox_event")) - 500
                broker.resume() if frozen else broker.start()
                began = time.monotonic()
                scene.wait_until_through(600)
                passed = time.monotonic() - began
                _say(f"{waiting:,} events caught up in {passed:.1f} s: {waiting / passed:,.0f} a second")
                scene.wait("SELECT state->>'alarm' IS NULL FROM outbox_relay", within=30)
                return wrong + scene.complaints()


def _say(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.relay.outages", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--frozen", action="store_true", help="freeze the broker instead of killing it")
    asked = parser.parse_args()
    wrong = outage(asked.seconds, frozen=asked.frozen)
    _say("\n".join(wrong) or "nothing lost, doubled or out of order; at rest throughout")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
