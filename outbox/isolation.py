"""The isolation levels of PostgreSQL, and which one satisfies which."""

from typing import Literal

from outbox.errors import ConfigurationError

Isolation = Literal["read committed", "repeatable read", "serializable"]

_LEVELS = ("read committed", "repeatable read", "serializable")


def checked(isolation: str | None, what: str) -> str | None:
    """As SQLAlchemy spells it. Raises ConfigurationError for a level PostgreSQL does not have."""
    if isolation is None:
        return None
    level = isolation.lower().replace("_", " ")
    if level not in _LEVELS:
        raise ConfigurationError(f"{what}: isolation={isolation!r} is none of {', '.join(_LEVELS)}")
    return level.upper()


def require(actual: str, wanted: str, what: str) -> None:
    """A joined transaction must be at least as strict. Raises ConfigurationError if it is not."""
    if _rank(actual) < _rank(wanted):
        raise ConfigurationError(
            f"{what} needs {wanted} and was asked to join a transaction that runs at {actual}; begin that "
            f"one with the stricter level, or call {what} without session="
        )


def _rank(level: str) -> int:
    level = level.lower()
    return _LEVELS.index(level) if level in _LEVELS else -1
