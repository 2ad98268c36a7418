"""Tell a server that is not to be had on this machine from one that broke."""

from outbox.errors import OutboxError


class ServerUnavailable(OutboxError):
    """The machine has no such server; the message names what to install.

    `requirement`: the name that OUTBOX_TEST_REQUIRE knows it by.
    """

    def __init__(self, requirement: str, message: str) -> None:
        super().__init__(message)
        self.requirement = requirement


class ServerFailed(OutboxError):
    """A server did not do what it was told within its bound; the message ends with its log."""
