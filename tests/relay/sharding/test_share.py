"""Relays share shards evenly, whoever comes and goes, and then leave them where they are."""

import random

import pytest

from relay.share import Reaching, Share, share


class Town:
    """Relays that decide one after the other, each on what it sees."""

    def __init__(self, seed: int) -> None:
        self._choose = random.Random(seed)
        self.owners: dict[int, str | None] = dict.fromkeys(range(self._choose.randint(1, 12)))
        self.living = [f"r{n}" for n in range(self._choose.randint(1, 5))]

    def round(self) -> int:
        """Everybody decides once; how many shards changed hands."""
        moved = 0
        for me in self._choose.sample(self.living, len(self.living)):
            decision = share(me, self.owners, [other for other in self.living if other != me])
            mine = [shard for shard, owner in self.owners.items() if owner == me]
            free = [shard for shard, owner in self.owners.items() if owner is None]
            for shard in self._choose.sample(free, decision.take):
                self.owners[shard] = me
            if decision.give:
                self.owners[self._choose.choice(mine)] = None
            moved += decision.take + decision.give
        return moved

    def settle(self) -> None:
        for _ in range(60):
            if self.round() == 0:
                return
        raise AssertionError(f"never at rest: {self.owners}")

    def counts(self) -> list[int]:
        return [sum(owner == relay for owner in self.owners.values()) for relay in self.living]


@pytest.mark.parametrize("seed", range(60))
def test_shards_end_evenly_shared_and_stay_where_they_are(seed: int) -> None:
    choose = random.Random(seed)
    town = Town(seed)
    for _ in range(4):
        town.settle()
        assert None not in town.owners.values()
        assert max(town.counts()) - min(town.counts()) <= 1
        if choose.random() < 0.5 and len(town.living) > 1:
            gone = choose.choice(town.living)
            town.living.remove(gone)
            town.owners = {s: None if owner == gone else owner for s, owner in town.owners.items()}
        else:
            town.living.append(f"n{len(town.living)}-{choose.random()}")


def test_a_newcomer_moves_no_more_than_its_share() -> None:
    owners: dict[int, str | None] = {0: "a", 1: "a", 2: "b", 3: "b"}
    assert [share(me, owners, others).give for me, others in (("a", ["b", "c"]), ("b", ["a", "c"]))] == [
        True,
        True,
    ]
    assert share("c", owners | {1: None}, ["a", "b"]).take == 1
    assert not share("a", {0: "a", 1: "c", 2: "b", 3: "b"}, ["b", "c"]).give


def test_one_that_gave_does_not_take_it_back() -> None:
    assert share("a", {0: "a", 1: None, 2: "b", 3: "b"}, ["b", "c"]).take == 0


OURS = {0: "me", 1: "me"}


@pytest.mark.parametrize("reaching", [Reaching.NOT_NOW, Reaching.NOT_FOR_LONG])
def test_who_does_not_reach_the_brokers_takes_nothing_that_another_could_carry(reaching: Reaching) -> None:
    assert share("me", {0: None, 1: None}, ["able"], reaching) == Share(0, give=False, short=False)
    assert share("me", {0: None, 1: None}, [], reaching).take == 2, "where nobody could, all is as ever"


def test_who_does_not_reach_them_for_long_gives_to_those_who_do_and_to_nobody_else() -> None:
    assert share("me", OURS, ["able"], Reaching.NOT_FOR_LONG).give
    assert not share("me", OURS, ["able"], Reaching.NOT_NOW).give, "it may be an outage that all have"
    assert not share("me", OURS, [], Reaching.NOT_FOR_LONG).give, "nothing goes to and fro in an outage"
