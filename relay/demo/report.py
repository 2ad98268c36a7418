"""Say the outcome: a table for a person, one JSON document for a program."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from relay.demo.verdict import KINDS, Verdict

SHOWN = 5
"""Breaches of a kind that are spelled out."""

MEANING = {
    "lost": "committed or acknowledged, and not there",
    "ghosts": "there, and never committed",
    "duplicates": "done more than once",
    "inversions": "in the wrong order",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything that one demo has to tell."""

    verdict: Verdict
    orders: int
    changed: int
    cancelled: int
    rolled_back: int
    invoices: int
    shipments: int
    kills: int
    freezes: int
    p50_ms: float
    p99_ms: float
    kafka: str
    postgres: str
    stalled: str | None = None
    """Which part stood still, with its last words, if one did."""

    @property
    def passed(self) -> bool:
        return self.verdict.passed and self.stalled is None

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "orders": self.orders,
            "published": self.verdict.published,
            "invoices": self.invoices,
            "shipments": self.shipments,
            **{kind: self.verdict.count(kind) for kind in KINDS},
            "repeats": self.verdict.repeats,
            "kills": self.kills,
            "freezes": self.freezes,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "kafka": self.kafka,
            "postgres": self.postgres,
        }

    def table(self) -> Iterator[str]:
        """Lines for a person."""
        verdict = self.verdict
        story = (
            f"{self.changed:,} changes, {self.cancelled:,} cancelled; {self.rolled_back:,} more rolled back"
        )
        for name, number, remark in (
            ("orders", self.orders, story),
            ("published", verdict.published, "events found on the topics by a plain consumer"),
            ("invoices", self.invoices, "one for each order"),
            ("shipments", self.shipments, "one for each order that was not cancelled"),
            *((kind, verdict.count(kind), MEANING[kind]) for kind in KINDS),
            ("repeats", verdict.repeats, "on the wire after a crash; the consumers dropped them"),
            ("kills", self.kills, "processes ended by SIGKILL"),
            ("freezes", self.freezes, "processes frozen past their lease, then woken"),
        ):
            yield f"  {name:<11}{number:>8,}   {remark}"
        waits = f"p50 {self.p50_ms:,.1f} ms, p99 {self.p99_ms:,.1f} ms from order to invoice, kills included"
        yield f"  {'latency':<11}{'':>8}   {waits}"
        yield ""
        yield _sentence(self)

    def breaches(self) -> Iterator[str]:
        """What is wrong, in words."""
        for kind in KINDS:
            found = self.verdict.breaches[kind]
            yield from (f"{kind}: {what}" for what in found[:SHOWN])
            if len(found) > SHOWN:
                yield f"{kind}: and {len(found) - SHOWN:,} more"


def _sentence(outcome: Outcome) -> str:
    if outcome.passed:
        return "Exactly once: nothing lost, nothing invented, nothing done twice, everything in order."
    if outcome.verdict.passed:
        return "Not finished: what arrived is right, but a part stood still."
    return "Broken: the four numbers above should all be 0."
