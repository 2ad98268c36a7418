"""How much of the machine others used meanwhile: figures taken on a busy machine deserve less trust."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Reading:
    """Clock ticks: all there were, those somebody used, and those this process and its children used."""

    all: int
    used: int
    ours: int


def read() -> Reading:
    """proc_stat(5) and proc_pid_stat(5); ended children count through whoever waited for them."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    used = user + nice + system + irq + softirq + steal
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            number = int(path.parent.name)
            parents[number] = int(fields[1])
            ticks[number] = sum(map(int, fields[11:15]))
    ours = sum(count for number, count in ticks.items() if _descends(number, parents))
    return Reading(used + idle + iowait, used, ours)


def others(before: Reading, after: Reading) -> float:
    """The share of the machine, 0 to 1, that processes which are not ours used in between."""
    ours = after.ours - before.ours
    return max(0.0, (after.used - before.used - ours) / (after.all - before.all))


def _descends(number: int, parents: dict[int, int]) -> bool:
    while number and number != os.getpid():
        number = parents.get(number, 0)
    return bool(number)
