"""One node of a real Apache Kafka: start, kill, freeze and restart it."""

import socket
from collections.abc import Mapping
from pathlib import Path
from signal import SIGKILL, SIGTERM

from outbox.testing.servers import jvm, kafka_storage
from outbox.testing.servers.failure import ServerFailed
from outbox.testing.servers.ports import Port
from outbox.testing.servers.program import Program

MAIN = "kafka.Kafka"
READY = 60.0
"""Seconds a broker gets to start; on an idle machine one takes about one, three together take four."""


class KafkaBroker:
    """One node, broker and controller at once. Its port and its data stay the same over restarts."""

    def __init__(self, node: int, directory: Path) -> None:
        self.node = node
        self.directory = directory
        self._port = Port()
        self._controller = Port()
        self._program: Program | None = None

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self._port.number}"

    @property
    def voter(self) -> str:
        """How its peers know it."""
        return f"{self.node}@127.0.0.1:{self._controller.number}"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._get().pid

    @property
    def running(self) -> bool:
        """Frozen counts as running."""
        return self._program is not None and self._program.running

    def configure(
        self, *, cluster: str, voters: str, settings: Mapping[str, str], flags: tuple[str, ...]
    ) -> None:
        """Write its configuration and format its storage; once, before the first start."""
        kafka_storage.format_directory(self.directory / "log", cluster=cluster, node=self.node)
        properties = {
            "process.roles": "broker,controller",
            "node.id": str(self.node),
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{self._controller.number}",
            "log.dirs": str(self.directory / "log"),
            **{name: self._placed(value) for name, value in settings.items()},
        }
        file = self.directory / "server.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        # A killed broker cannot remove the libraries its compression unpacks: they go with its directory.
        temporary = f"-Djava.io.tmpdir={self.directory}"
        self._program = Program(
            f"Kafka broker {self.node}",
            jvm.command(MAIN, str(file), flags=(*flags, temporary)),
            log=self.directory / "broker.log",
            farewell=SIGKILL,  # its data go with it
            directory=self.directory,
        )

    def _placed(self, value: str) -> str:
        """`value` with this broker's own addresses: settings are written before any broker has one."""
        controller = f"127.0.0.1:{self._controller.number}"
        return value.replace("{address}", self.address).replace("{controller}", controller)

    def change(self, settings: Mapping[str, str]) -> None:
        """Other settings from its next start on."""
        with (self.directory / "server.properties").open("a") as file:
            file.writelines(f"{name}={value}\n" for name, value in settings.items())

    def launch(self) -> None:
        """Start it without waiting."""
        self._get().start()

    def start(self) -> None:
        """Start it again after `kill` or `stop`; returns when it takes connections."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Return when it takes connections, which a broker does once its controller has let it in."""
        self._get().wait_until(self._listens, within=READY)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._get().kill()

    def stop(self) -> None:
        """End it in good order: its leaderships move first."""
        self._get().stop(by=SIGTERM, within=30)

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers."""
        self._get().pause()

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._get().resume()

    def log(self) -> str:
        """The end of what it logged."""
        return self._get().tail(200)

    def close(self) -> None:
        """Done with it."""
        if self._program is not None:
            self._program.kill()
        self._port.release()
        self._controller.release()

    def _get(self) -> Program:
        if self._program is None:
            raise ServerFailed(f"broker {self.node} has no configuration yet")
        return self._program

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self._port.number)) == 0
