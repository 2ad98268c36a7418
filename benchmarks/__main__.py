"""`python -m benchmarks`: run them, print tables or JSON."""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks import consume, drain, emit, latency, memory, modes, noise, storage
from benchmarks.place import Place, Sizes, place
from benchmarks.report import MARKDOWN, Report
from outbox.errors import OutboxError

BENCHMARKS: Mapping[str, Callable[[Place, Sizes], Report]] = {
    "drain": drain.measure,
    "held": drain.measure_held,
    "modes": modes.measure,
    "memory": memory.measure,
    "latency": latency.measure,
    "fast": latency.measure_fast,
    "storage": storage.measure,
    "emit": emit.measure,
    "consume": consume.measure,
}

QUICK = Sizes(rounds=1, events=20_000, seconds=3.0, transactions=200)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when everything was measured, whatever the figures; 3 when servers are missing."""
    options = _parser().parse_args(arguments)
    logging.getLogger().addHandler(logging.NullHandler())
    sizes = _sizes(options)
    try:
        with place() as where:
            machine = where.describe()
            reports = []
            for name in options.only:
                print(f"measuring {name} …", file=sys.stderr, flush=True)
                before = noise.read()
                report = BENCHMARKS[name](where, sizes)
                report = dataclasses.replace(report, others=noise.others(before, noise.read()))
                reports.append(report)
                if not options.json and not options.markdown:
                    print(f"{report.as_table()}\n", flush=True)
    except OutboxError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 3
    if options.json:
        found = {report.name: report.as_json() for report in reports}
        print(json.dumps({"machine": machine, "rounds": sizes.rounds, "benchmarks": found}))
        return 0
    if options.markdown:
        print(MARKDOWN, *(report.as_markdown() for report in reports), sep="\n", end="\n\n")
    print(", ".join(f"{name} {value}" for name, value in machine.items()) + f"; rounds {sizes.rounds}")
    return 0


def _sizes(options: argparse.Namespace) -> Sizes:
    standard = QUICK if options.quick else Sizes()
    return Sizes(
        rounds=options.rounds or standard.rounds,
        events=options.events or standard.events,
        seconds=options.seconds or standard.seconds,
        transactions=standard.transactions,
        many=options.many or 5 * (options.events or standard.events),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog='Example: make bench ARGS="--only drain,latency --rounds 3". A figure that misses its '
        "target is marked `below target`; the exit code stays 0, because this measures and does not judge.",
    )
    parser.add_argument("--only", type=_names, default=list(BENCHMARKS), metavar=",".join(BENCHMARKS))
    parser.add_argument(
        "--rounds", type=_positive(int), help="rounds of each comparison; the median counts (3)"
    )
    parser.add_argument("--events", type=_positive(int), help="events of a backlog (200000)")
    parser.add_argument(
        "--many", type=_positive(int), help="events of the large backlog (five times as many)"
    )
    parser.add_argument("--seconds", type=_positive(float), help="seconds of each latency phase (6)")
    parser.add_argument("--quick", action="store_true", help="one small round of each: does it run?")
    parser.add_argument("--markdown", action="store_true", help="one table to paste into a page")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, nothing else")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or (unknown := sorted(set(names) - set(BENCHMARKS))):
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'}: it knows {', '.join(BENCHMARKS)}"
        )
    return names


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return read


if __name__ == "__main__":
    sys.exit(main())
