"""Torture consumers of every protocol on three brokers, and judge what they stored.

python -m tests.consumer.torture --seconds 600 --protocols eager,cooperative,kip848 --seed 7
"""

import argparse
import random
import sys

from tests.consumer.torture.campaign import FORMS, Campaign, servers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="for each protocol (default 600)")
    parser.add_argument("--protocols", default=",".join(FORMS), help="with commas between them")
    parser.add_argument("--processes", type=int, default=6, help="members' processes, of two threads each")
    parser.add_argument("--kind", default="plain", help='of handlers: plain, async, lanes or "async lanes"')
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    protocols = arguments.protocols.split(",")
    if unknown := set(protocols) - set(FORMS):
        parser.error(f"no such protocol: {', '.join(unknown)}; there are {', '.join(FORMS)}")
    wrong = False
    with servers() as stand:
        for protocol in protocols:
            campaign = Campaign(stand, protocol, arguments.seed, arguments.processes, kind=arguments.kind)
            verdict = campaign.run(arguments.seconds)
            wrong |= bool(verdict.faults)
            sys.stdout.write(f"{verdict}\n")
            sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
