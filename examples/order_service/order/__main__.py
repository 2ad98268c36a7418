"""Serve orders over HTTP until told to stop: python -m examples.order_service.order --port 8000."""

import argparse
import signal
import sys

import uvicorn
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from examples.order_service.migrate import migrate
from examples.order_service.order.app import app
from examples.order_service.order.services import sessions
from examples.order_service.settings import database_url
from outbox.errors import OutboxError

CONNECTIONS = 16
"""More than this many requests wait for each other here instead of in PostgreSQL."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.order_service.order", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--migrate", action="store_true", help="bring the database up to date first")
    arguments = parser.parse_args()
    try:
        url = database_url("ORDER_DATABASE_URL")
        engine = create_engine(url, pool_size=CONNECTIONS, max_overflow=0, pool_pre_ping=True)
        if arguments.migrate:
            migrate(engine, "examples.order_service.order")
    except OutboxError as error:
        sys.exit(f"order: {error}")
    except OperationalError as error:
        sys.exit(f"order: the database cannot be reached: {error.orig}")
    sessions.configure(bind=engine)
    # uvicorn raises the signal again once it has shut down: answered here, the exit code is 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(app, host=arguments.host, port=arguments.port, access_log=False)


if __name__ == "__main__":
    main()
