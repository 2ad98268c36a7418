"""What mode `transactional` costs against `sequenced`, by the size of a transaction."""

from benchmarks import drain
from benchmarks.place import Place, Sizes
from benchmarks.report import Figure, Report, at_least

ROWS = {1_000: 0.6, 5_000: 0.75}
"""Rows of one transaction, and the least ratio aimed for."""


def measure(place: Place, sizes: Sizes) -> Report:
    figures = []
    for rows, bound in ROWS.items():
        sequenced, transactional = [], []
        for _ in range(sizes.rounds):
            sequenced.append(drain.relay(place, sizes.events, chunk_rows=rows))
            transactional.append(
                drain.relay(place, sizes.events, mode="transactional", transaction_rows=rows)
            )
        both = list(zip(transactional, sequenced, strict=True))
        figures += [
            Figure(
                f"{rows:,} rows, transactional / sequenced, events/s",
                "×",
                [t.rate / s.rate for t, s in both],
                at_least(bound),
            ),
            Figure(f"{rows:,} rows, CPU transactional", "s per 100,000", [t.cpu for t in transactional]),
            Figure(f"{rows:,} rows, CPU sequenced", "s per 100,000", [s.cpu for s in sequenced]),
        ]
    return Report("modes", f"Drain of {sizes.events:,} events in both modes, equal chunks", figures)
