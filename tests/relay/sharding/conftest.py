"""The database half's writers, and a broker in memory; what needs the wire starts relays on a scene."""

from tests.relay.database.conftest import broker, half, own, writer

__all__ = ["broker", "half", "own", "writer"]
