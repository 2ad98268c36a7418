"""`python -m benchmarks.peers`: this relay and others in turn, on the same rows and servers."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from benchmarks import drain, noise
from benchmarks.drain import Drained
from benchmarks.peers import python
from benchmarks.peers.debezium import JARS, debezium
from benchmarks.place import Place, place
from benchmarks.report import MARKDOWN, Figure, Report, at_least
from outbox.errors import OutboxError

SETTINGS = {"wal_level": "logical", "logical_decoding_work_mem": "512MB", "wal_sender_timeout": "0"}
"""What Debezium needs: no transaction here spills to disk while decoded; it may stand still for minutes."""


@dataclass(slots=True)
class Peer:
    """`events`: as many as it carries in some seconds. `least`: how often as fast we want to be."""

    name: str
    events: int
    least: float
    run: Callable[[int], Drained]
    found: list[Drained] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when everything there is was measured; 3 when a peer or a server is missing."""
    options = _parser().parse_args(arguments)
    missing = []
    before = noise.read()
    try:
        with place(SETTINGS) as where, ExitStack() as stack:
            peers = _python_peers(where, options.events)
            if not python.PYTHON.exists():
                missing.append(f"the Python peers: {python.PYTHON} is not there; run make bench-peers")
                peers = []
            if JARS.is_dir():
                connector = stack.enter_context(debezium(where))
                print("warming Debezium …", file=sys.stderr, flush=True)
                connector.warm(2 * options.events)
                peers.append(Peer("Debezium", options.events, 3, connector.drain))
            else:
                missing.append(f"Debezium: {JARS} is not there; install Maven and run make bench-peers")
            ours = []
            for number in range(options.rounds):
                print(f"round {number + 1} …", file=sys.stderr, flush=True)
                ours.append(drain.relay(where, options.events))
                for peer in peers:
                    peer.found.append(peer.run(peer.events))
    except OutboxError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 3
    report = replace(_report(ours, peers), others=noise.others(before, noise.read()))
    if options.markdown:
        print(MARKDOWN, report.as_markdown(), sep="\n")
    else:
        print(report.as_table())
        print(f"other programs used {report.others:.0%} of the machine meanwhile")
    for what in missing:
        print(f"not measured: {what}", file=sys.stderr)
    return 3 if missing else 0


def _python_peers(where: Place, events: int) -> list[Peer]:
    return [
        Peer("txoutbox", events // 10, 10, lambda count: python.drain(where, "txoutbox", count)),
        Peer("faststream-outbox", events // 20, 10, lambda count: python.drain(where, "faststream", count)),
    ]


def _report(ours: list[Drained], peers: list[Peer]) -> Report:
    figures = []
    for peer in peers:
        both = list(zip(ours, peer.found, strict=True))
        figures += [
            Figure(
                f"outbox-relay / {peer.name}", "×", [o.rate / p.rate for o, p in both], at_least(peer.least)
            ),
            Figure(f"CPU, {peer.name} / outbox-relay", "×", [p.cpu / o.cpu for o, p in both]),
            Figure(f"{peer.name}", "events/s", [p.rate for p in peer.found]),
            Figure(f"CPU of {peer.name}", "s per 100,000", [p.cpu for p in peer.found]),
            Figure(f"peak memory of {peer.name}", "MB", [p.peak_mb for p in peer.found]),
        ]
    figures += [
        Figure("outbox-relay", "events/s", [o.rate for o in ours]),
        Figure("CPU of outbox-relay", "s per 100,000", [o.cpu for o in ours]),
        Figure("peak memory of outbox-relay", "MB", [o.peak_mb for o in ours]),
    ]
    return Report("peers", "Drain of the same rows by other relays, in the same rounds", figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        epilog='Example: make bench-peers ARGS="--rounds 5". What is missing is named, with exit code 3.',
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts (3)")
    parser.add_argument("--events", type=int, default=200_000, help="events of a backlog (200000)")
    parser.add_argument("--markdown", action="store_true", help="a table to paste into a page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
