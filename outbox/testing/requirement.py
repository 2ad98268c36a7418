"""Decide in one place whether a test without its server is skipped or fails.

OUTBOX_TEST_REQUIRE names the servers that must be there, as CI sets it: `pg,kafka`. A test that lacks one
of these fails; a test that lacks another is skipped, with one line that says how to get it.
"""

import os
from typing import NoReturn

import pytest

from outbox.testing.servers.failure import ServerUnavailable

NAMES = ("pg", "kafka", "embedded", "pgbouncer", "promtool")


def required() -> frozenset[str]:
    """The servers named in OUTBOX_TEST_REQUIRE."""
    words = os.environ.get("OUTBOX_TEST_REQUIRE", "").replace(",", " ").split()
    if unknown := sorted(set(words) - set(NAMES)):
        raise pytest.UsageError(
            f"OUTBOX_TEST_REQUIRE names {', '.join(unknown)}; it knows {', '.join(NAMES)}"
        )
    return frozenset(words)


def missing(error: ServerUnavailable) -> NoReturn:
    """Skip the running test, or fail it when its server is required."""
    if error.requirement in required():
        pytest.fail(f"OUTBOX_TEST_REQUIRE asks for {error.requirement}: {error}", pytrace=False)
    pytest.skip(str(error))
