"""What one relay says of itself: the states of its shards put together, for `status` and the heartbeat."""

from typing import Any

GRAVEST_FIRST = ("halted", "waiting", "starting", "carrying", "standby")


class Report:
    """Each shard's thread writes its own part, any thread reads the whole."""

    def __init__(self) -> None:
        self._shards: dict[int, dict[str, Any]] = {}
        self._published = 0
        self.began = False
        self.ended = False
        self.trouble: str | None = None
        """What keeps the relay from its leases."""
        self.space: str | None = None
        """Why the table grows: an alarm, but everything is carried."""

    def shard(self, number: int) -> dict[str, Any]:
        """The part of one shard that is carried from now on."""
        part = {"state": "starting", "alarm": None, "published": 0}
        self._shards[number] = part
        return part

    def forget(self, number: int) -> None:
        """It is carried no more; what was published stays counted."""
        self._published += self._shards.pop(number)["published"]

    def whole(self) -> dict[str, Any]:
        """`state` is the gravest of all shards', `alarm` in words, `published` events since the start."""
        shards = {number: dict(part) for number, part in sorted(self._shards.copy().items())}
        states = {part["state"] for part in shards.values()}
        alarms = [
            part["alarm"] if len(shards) == 1 else f"shard {number}: {part['alarm']}"
            for number, part in shards.items()
            if part["alarm"] is not None
        ]
        if self.trouble is not None and not alarms:
            states, alarms = {"waiting"}, [self.trouble]
        if self.space is not None:
            alarms.append(self.space)
        idle = "standby" if self.began else "starting"
        return {
            "state": "stopped" if self.ended else min(states, key=GRAVEST_FIRST.index, default=idle),
            "alarm": "; ".join(alarms) or None,
            "published": self._published + sum(part["published"] for part in shards.values()),
            "shards": shards,
        }
