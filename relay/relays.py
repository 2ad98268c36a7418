"""Carry several databases from one process, each as if it were alone."""

import dataclasses
import logging
import threading
from contextlib import ExitStack
from typing import Any

from outbox.errors import OutboxError
from relay import loop
from relay.config import RelayConfig
from relay.daemon import Relay
from relay.telemetry.health import Health, Pages
from relay.telemetry.metrics import Observed

log = logging.getLogger("relay")

AGAIN = 10.0
"""Seconds before a database that an operator has to mend is tried again."""


class _Charge:
    """One database: a relay on a thread of its own, begun anew after whatever ended it.

    Its instance has the section's name: two sections that reach one database are two relays there, which
    share its shards. Under one name each would take the other's leases for its own.
    """

    def __init__(self, name: str, config: RelayConfig) -> None:
        self.name = name
        self._config = config.model_copy(update={"instance": f"{config.instance}.{name}"})
        self._bell = loop.Bell()
        self._relay = Relay(self._config)
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"outbox-{name}", daemon=True)

    @property
    def status(self) -> dict[str, Any]:
        status = self._relay.status
        if self._failure is not None:
            status |= {"state": "halted", "alarm": self._failure}
        return status

    def observed(self) -> Observed:
        return dataclasses.replace(self._relay.observed(), database=self.name, status=self.status)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._bell.stop()
        self._relay.stop()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        loop.run(self._carry, self._bell)

    def _carry(self) -> float:
        try:
            self._relay.run()
            return 0.0
        except OutboxError as error:
            self._failure = str(error)
            log.error("database %s: %s; trying again every %.0f s", self.name, error, AGAIN)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            log.exception("database %s: its relay ended; trying again every %.0f s", self.name, AGAIN)
        self._bell.sleep(AGAIN)
        self._relay, self._failure = Relay(self._config), None
        if self._bell.stopping:
            self._relay.stop()
        return 0.0


class Relays:
    """Publish the events of each database in `config.databases`; what befalls one is nothing to the others.

    `run()` blocks until SIGTERM, SIGINT or `stop()`.
    """

    def __init__(self, config: RelayConfig) -> None:
        self._health_address = config.health_address
        self._charges = [_Charge(name, one) for name, one in config.each().items()]
        self._bell = loop.Bell()

    @property
    def status(self) -> dict[str, dict[str, Any]]:
        """`Relay.status` of each database by its name."""
        return {charge.name: charge.status for charge in self._charges}

    def stop(self) -> None:
        """End `run()` after the chunks in hand; callable from any thread or signal handler."""
        for charge in self._charges:
            charge.stop()
        self._bell.stop()

    def run(self) -> None:
        """Carry all of them until told to stop; one that needs mending is tried again every few seconds."""
        with ExitStack() as beside:
            beside.enter_context(loop.stopped_by_signals(self.stop))
            if self._health_address is not None:
                health = Health(self._health_address, Pages(lambda: [c.observed() for c in self._charges]))
                beside.callback(health.close)
                health.start()
            for charge in self._charges:
                charge.start()
            while not self._bell.sleep(60):
                pass
            for charge in self._charges:
                charge.join()
