"""What a partition does when its stored offset cannot be read from: stand still, unless told otherwise."""

from dataclasses import dataclass, fields
from typing import Literal

from outbox.errors import ConfigurationError, GuardViolation

_CHOICES: dict[str, tuple[str, ...]] = {
    "below": ("stop", "earliest"),
    "above": ("stop", "latest"),
    "truncated": ("stop", "fork"),
    "recreated": ("stop", "beginning"),
    "cluster": ("stop", "beginning"),
    "partitions": ("alarm", "stop"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """A choice for each problem a stored offset can have. What is done stands in the offset's row, with when
    and why, in the transaction that does it: `outbox-relay consumers list` shows it.

    Every default stops that one partition with an alarm that names the command; nothing is skipped. Where a
    partition begins that was never read is `start`, a setting of its own.

    below: retention deleted records before they were read. "earliest": go on without them.
    above: the offset is beyond the end: the log was lost. "latest": go on at its end, which is further back;
        what was applied stays applied, and a record that is sent again is dropped as a repeat.
    truncated: the log was cut off below the offset and has grown since, so other records stand there.
        "fork": read what is new from where the cut was.
    recreated: the topic was deleted and made again. "beginning": read the new one from its beginning; what
        was applied of the old one is dropped as a repeat if its relay sends it again. Stops all the same if
        the number of partitions is another: keys moved, and marks would drop what was never applied.
    cluster: the offset belongs to another Kafka cluster. "beginning": as for `recreated`.
    partitions: the topic has more of them, so keys moved: a key's records from before and after are applied
        independently of each other. "alarm": say so once and read the new ones from their beginning. "stop":
        the new ones wait until somebody says `outbox-relay consumers accept`, once the old ones are read.
    """

    below: Literal["stop", "earliest"] = "stop"
    above: Literal["stop", "latest"] = "stop"
    truncated: Literal["stop", "fork"] = "stop"
    recreated: Literal["stop", "beginning"] = "stop"
    cluster: Literal["stop", "beginning"] = "stop"
    partitions: Literal["alarm", "stop"] = "alarm"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, allowed = getattr(self, field.name), _CHOICES[field.name]
            if value not in allowed:
                raise ConfigurationError(
                    f"positions: {field.name}={value!r} is none of {', '.join(map(repr, allowed))}"
                )


class Misplaced(GuardViolation):
    """A partition cannot be read from where its row says. `moves`: the row's count of moves at that moment,
    None without a row; when it changes, somebody has mended it."""

    def __init__(self, message: str, *, moves: int | None) -> None:
        super().__init__(message)
        self.moves = moves


def command(verb: str, group: str, topic: str, partition: int | None = None, rest: str = "") -> str:
    """The command line that mends a position."""
    where = "" if partition is None else f" --partition {partition}"
    return f"outbox-relay consumers {verb} --group {group} --topic {topic}{where}{rest} --yes"
