"""Answer orchestrators and Prometheus over HTTP: is it live, is it ready, what does it measure.

Off unless an address is set. Nothing can be changed through it and nothing secret is in it, but it says
which databases there are: it binds loopback unless told otherwise.
"""

import json
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from outbox.errors import ConfigurationError
from relay.telemetry import metrics
from relay.telemetry.metrics import Observed

log = logging.getLogger("relay.health")

LOOPBACK = "127.0.0.1"

PATIENCE = 5.0
"""Seconds that a client may take to say what it wants."""

READY = frozenset({"carrying", "standby"})


def address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[::1]:port` or a port alone, which means loopback.

    Raises ValueError in words.
    """
    host, _, port = text.strip().rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is no address; write a port (9464) or host:port (0.0.0.0:9464)")
    return host.strip("[]") or LOOPBACK, int(port)


Answer = tuple[HTTPStatus, str, str]
"""Status, content type and body."""


class Answers(Protocol):
    """The pages of one kind of process, without HTTP."""

    def answer(self, path: str) -> Answer | None:
        """What to say; None for a page that is not there. Must not block."""


class Health:
    """Serves `/healthz`, `/readyz` and `/metrics` on a thread of its own."""

    def __init__(self, where: str, pages: Answers) -> None:
        host, port = address(where)
        self._server = _listening(host, port, pages)
        self._thread = threading.Thread(target=self._server.serve_forever, name="outbox-health", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()
        log.info("health and metrics at http://%s:%d", *self._server.server_address[:2])

    def close(self) -> None:
        """Give the port back."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _listening(host: str, port: int, answers: Answers) -> ThreadingHTTPServer:
    class Page(_Page):
        pages = answers

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        return Server((host, port), Page)
    except OSError as error:
        raise ConfigurationError(
            f"health_address {host}:{port} cannot be bound: {error.strerror or error}; choose another "
            "OUTBOX_HEALTH_ADDRESS, or leave it unset"
        ) from error


class Pages:
    """The relay's answers.

    `observe` gives what the daemon knows at the moment, one entry a database; it must not block.
    """

    def __init__(self, observe: Callable[[], Sequence[Observed]]) -> None:
        self._observe = observe

    def answer(self, path: str) -> Answer | None:
        match path:
            case "/healthz":
                return HTTPStatus.OK, "text/plain; charset=utf-8", "ok\n"
            case "/readyz":
                return self._ready()
            case "/metrics":
                return HTTPStatus.OK, metrics.CONTENT_TYPE, metrics.page(self._observe())
            case _:
                return None

    def _ready(self) -> Answer:
        """Ready: every database is carried by us, or by another relay that we stand by for."""
        found: dict[str, dict[str, Any]] = {
            one.database: {"state": one.status["state"], "alarm": one.status["alarm"]}
            for one in self._observe()
        }
        ready = all(one["state"] in READY for one in found.values())
        body = json.dumps({"ready": ready, "databases": found}) + "\n"
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return status, "application/json", body


class _Page(BaseHTTPRequestHandler):
    """GET and HEAD of three pages, one a connection."""

    pages: Answers
    timeout = PATIENCE
    server_version, sys_version = "outbox-relay", ""

    def do_GET(self) -> None:
        answer = self.pages.answer(self.path.partition("?")[0])
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND, "there are /healthz, /readyz and /metrics")
            return
        status, kind, body = answer
        sent = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(sent)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(sent)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has in the library
        log.debug(format, *args)
