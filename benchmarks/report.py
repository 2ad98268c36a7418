"""Figures with their targets, as a table for people or JSON for programs."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be; `sign` is "≥" or "≤"."""

    sign: str
    bound: float

    def met(self, value: float) -> bool:
        compare: Callable[[float, float], bool] = operator.ge if self.sign == "≥" else operator.le
        return compare(value, self.bound)

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


def at_least(bound: float) -> Target:
    return Target("≥", bound)


def at_most(bound: float) -> Target:
    return Target("≤", bound)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity, a sample a round; the median is its value."""

    name: str
    unit: str
    samples: Sequence[float]
    target: Target | None = None

    @property
    def value(self) -> float:
        return median(self.samples)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.target.met(self.value) else "below target"

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.value,
            "samples": list(self.samples),
            "target": str(self.target) if self.target else None,
            "met": self.target.met(self.value) if self.target else None,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What one benchmark found. `name` is what `--only` knows it by."""

    name: str
    title: str
    figures: Sequence[Figure]
    others: float = 0.0
    """The share of the machine that other programs used meanwhile, 0 to 1."""

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "others_percent": round(self.others * 100),
            "figures": [figure.as_json() for figure in self.figures],
        }

    def as_markdown(self) -> str:
        """Rows of one table, ready to paste; median and, from the rounds, lowest and highest."""
        lines = []
        for figure in self.figures:
            name = figure.name if figure.unit == "×" else f"{figure.name}, {figure.unit}"
            value, spread = (
                _shown(figure.value),
                f"{_shown(min(figure.samples))} – {_shown(max(figure.samples))}",
            )
            if figure.target:
                value = f"**{value}**"
            cells = [self.name, name, value, spread, str(figure.target or ""), figure.verdict]
            lines.append(f"| {' | '.join(cells)} | {self.others:.0%} |")
        return "\n".join(lines)

    def as_table(self) -> str:
        """Columns under each other, figures with a target first as they were given."""
        rows = [("", "median", "lowest", "highest", "target", "")]
        for figure in self.figures:
            name = figure.name if figure.unit == "×" else f"{figure.name}, {figure.unit}"
            lowest, highest = _shown(min(figure.samples)), _shown(max(figure.samples))
            target = str(figure.target) if figure.target else ""
            rows.append((name, _shown(figure.value), lowest, highest, target, figure.verdict))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.title]
        for name, *cells, verdict in rows:
            aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:5], strict=True)]
            lines.append("  ".join([f"  {name:<{widths[0]}}", *aligned, verdict]).rstrip())
        return "\n".join(lines)


MARKDOWN = "| part | figure | median | rounds | target | | others used |\n|---|---|--:|--:|--:|---|--:|"
"""Head of the table that `as_markdown` gives the rows of."""


def _shown(number: float) -> str:
    """Three digits that mean something."""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
