"""Hand out TCP ports that stay free for a server's whole life, restarts included.

They lie below the range from which Linux takes ports for outgoing connections: a port from that range can
be taken by any client between a server's death and its restart.
"""

import random
import socket
import sys

LOWEST, HIGHEST = 16_000, 32_000


class Port:
    """One port of 127.0.0.1, reserved among all processes of this machine that reserve in this way."""

    def __init__(self) -> None:
        for number in random.sample(range(LOWEST, HIGHEST), 200):
            if (claim := _claim(number)) is not None:
                self.number, self._claim = number, claim
                return
        raise OSError(f"no free TCP port between {LOWEST} and {HIGHEST} in 200 tries")

    def release(self) -> None:
        """The server is gone for good."""
        self._claim.close()


def _claim(number: int) -> socket.socket | None:
    """Reserve `number` by a name in Linux' abstract socket space, which ends with the process."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        if sys.platform == "linux":
            claim.bind(f"\0outbox-relay-port-{number}")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", number))
    except OSError:
        claim.close()
        return None
    return claim
