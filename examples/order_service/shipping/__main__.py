"""Ship invoiced orders until told to stop: python -m examples.order_service.shipping --threads 2."""

import argparse
import logging
import sys

from sqlalchemy.exc import OperationalError

from examples.order_service.migrate import migrate
from outbox.errors import OutboxError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.order_service.shipping", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="members of the group (default: %(default)s)")
    parser.add_argument("--migrate", action="store_true", help="bring the database up to date first")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        # Imported here because it reads the environment, which may lack something.
        from examples.order_service.shipping.consumer import consumer, engine

        if arguments.migrate:
            migrate(engine, "examples.order_service.shipping")
        consumer.run(threads=arguments.threads)
    except OutboxError as error:
        sys.exit(f"shipping: {error}")
    except OperationalError as error:
        sys.exit(f"shipping: the database cannot be reached: {error.orig}")


if __name__ == "__main__":
    main()
