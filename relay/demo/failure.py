"""What ends a demo before its verdict."""

from outbox.errors import OutboxError


class DemoFailed(OutboxError):
    """Something stood still, ended or answered wrongly; the message says what and shows its last words."""


class DemoImpossible(OutboxError):
    """The machine or the options do not allow this demo; the message says what to change."""
