"""Share shards evenly between living relays: a pure decision over what one survey found."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto


class Reaching(Enum):
    """Whether a relay's host reaches the brokers."""

    YES = auto()
    NOT_NOW = auto()
    NOT_FOR_LONG = auto()


@dataclass(frozen=True, slots=True)
class Share:
    """`take`: how many free shards to take now. `give`: hand one of ours over.

    `short`: fewer than our share, so whatever is let go elsewhere is to be taken at once.
    """

    take: int
    give: bool
    short: bool


def share(
    me: str,
    owners: Mapping[int, str | None],
    others: Sequence[str],
    reaching: Reaching = Reaching.YES,
) -> Share:
    """What `me` should do, given who holds each shard (None: nobody) and which other relays live and reach
    the brokers.

    Everybody ends with the whole part of shards / relays, some with one more, and then nothing moves again.
    Who does not reach the brokers takes no shard that another could carry, and in the end gives its own;
    where nobody reaches them nothing is given, so nothing goes to and fro in an outage.
    """
    held = Counter(owner for owner in owners.values() if owner is not None)
    mine = held[me]
    if others and reaching is not Reaching.YES:
        return Share(0, give=mine > 0 and reaching is Reaching.NOT_FOR_LONG, short=False)
    least, more = divmod(len(owners), len(others) + 1)
    most = least + bool(more)
    somebody_lacks = any(held[other] < least for other in others)
    if mine > most or (mine > least and somebody_lacks):
        return Share(0, give=True, short=False)
    # One more than the least is for who comes first, once everybody has the least.
    wanted = (least if somebody_lacks else most) - mine
    free = sum(owner is None for owner in owners.values())
    return Share(max(0, min(wanted, free)), give=False, short=mine < max(least, 1))
