"""Whatever ends the owner of a server, SIGKILL included, the server and its directory end with it."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

OWNER = """
import sys, time
from outbox.testing.servers import start_mock_kafka, start_postgres
from outbox.testing.servers.postgres import OwnPostgres
postgres, mock = start_postgres(embedded=True), start_mock_kafka()
assert isinstance(postgres, OwnPostgres)
print(postgres.pid, mock.pid, postgres.log_file, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_killed_owner(end: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        postgres, mock, log = owner.stdout.readline().split()
        watched = [os.pidfd_open(int(pid)) for pid in (postgres, mock)]
        assert Path(log).exists()
        owner.send_signal(end)
    for pidfd in watched:
        assert select.select([pidfd], [], [], 20)[0], "a server outlived its owner"
        os.close(pidfd)
    until = time.monotonic() + 20
    while Path(log).parent.exists():
        assert time.monotonic() < until, "a directory outlived its owner"
        time.sleep(0.01)
