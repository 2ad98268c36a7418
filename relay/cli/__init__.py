"""`outbox-relay`: one executable, one file a command group."""

from relay.cli.main import main

__all__ = ["main"]
