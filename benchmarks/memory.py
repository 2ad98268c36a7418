"""Does the relay's memory, or what an event costs it, grow with what waits for it?"""

from benchmarks import drain
from benchmarks.place import Place, Sizes
from benchmarks.report import Figure, Report, at_most


def measure(place: Place, sizes: Sizes) -> Report:
    few = drain.relay(place, sizes.events)
    many = drain.relay(place, sizes.many)
    return Report(
        "memory",
        "The relay by the size of the backlog (one round: memory hardly varies)",
        [
            Figure(f"peak, {sizes.many:,} events", "MB", [many.peak_mb], at_most(80)),
            Figure(f"peak, {sizes.events:,} events", "MB", [few.peak_mb], at_most(80)),
            Figure("time for an event, the larger / the smaller", "×", [few.rate / many.rate], at_most(1.1)),
            Figure("CPU for an event, the larger / the smaller", "×", [many.cpu / few.cpu], at_most(1.1)),
            Figure(f"CPU, {sizes.many:,} events", "s per 100,000", [many.cpu], at_most(0.55)),
        ],
    )
