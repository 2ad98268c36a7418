"""The operator's commands."""

from tests.relay.parking.conftest import operate

__all__ = ["operate"]
