"""A steady load of transactions, each an order with its event, and when each was committed."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.events import NOTE, OrderPlaced
from outbox.errors import OutboxError
from outbox.testing.servers import postgres_programs

CLIENTS = 8
"""Connections that commit side by side: a commit waits for the disk."""

CLIENT = 1_000_000
"""An event's number is its connection's times this, plus how many that one has committed."""

PAYLOAD = (
    """'{{"order_id":"' || gen_random_uuid() || '","number":' || :number """
    f"""|| ',"total":"19.90","note":"{NOTE}"}}}}'"""
)

SCRIPT = f"""
\\set n :n + 1
\\set number :client_id * {CLIENT} + :n
\\startpipeline
BEGIN;
INSERT INTO bench_order (number, order_id, total, note) VALUES (:number, gen_random_uuid(), 19.90, '{NOTE}');
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload, topic)
VALUES (gen_random_uuid(), 'order', :number::text, '{OrderPlaced.__wire_type__}',
        convert_to({PAYLOAD}, 'UTF8'), '{{topic}}');
COMMIT;
\\endpipeline
"""
"""330 bytes of JSON beside a domain row, in one transaction and one round trip."""


class LoadFailed(OutboxError):
    """pgbench is missing or failed."""


@dataclass(frozen=True, slots=True)
class Load:
    """`committed`: event number → when its COMMIT was answered, in seconds since 1970."""

    committed: dict[int, float]

    @property
    def pace(self) -> float:
        """Transactions a second."""
        times = self.committed.values()
        return (len(self.committed) - 1) / (max(times) - min(times))


def run(url: str, topic: str, *, pace: float, transactions: int) -> Load:
    """Commit `transactions` at `pace` a second, at random moments (Poisson), and return when they are in.

    pgbench writes them, since a load generator in Python would use as much of the machine as the relay.
    """
    with TemporaryDirectory() as directory:
        script = Path(directory, "load.sql")
        script.write_text(SCRIPT.format(topic=topic))
        command = [
            *(_pgbench(), "--no-vacuum", "--protocol=prepared", "--log", f"--file={script}", "--define=n=0"),
            *(
                f"--client={CLIENTS}",
                "--jobs=1",
                f"--rate={pace}",
                f"--transactions={transactions // CLIENTS}",
            ),
        ]
        done = subprocess.run(
            [*command, url], cwd=directory, capture_output=True, text=True, check=False, timeout=600
        )
        if done.returncode != 0:
            raise LoadFailed(f"pgbench failed: {done.stderr.strip()}")
        logs = [log.read_text() for log in Path(directory).glob("pgbench_log.*")]
    lines = [line.split() for text in logs for line in text.splitlines()]
    return Load({int(c) * CLIENT + int(n): int(s) + int(us) / 1e6 for c, n, _, _, s, us, *_ in lines})


def _pgbench() -> str:
    beside = postgres_programs.on_this_machine()["pgbench"]
    found = beside if Path(beside).exists() else shutil.which("pgbench")
    if found is None:
        raise LoadFailed(
            "pgbench is not beside PostgreSQL's programs (Debian: apt install postgresql-contrib)"
        )
    return found
