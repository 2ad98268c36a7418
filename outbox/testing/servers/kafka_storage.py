"""Format a broker's log directory without a second Java program: 0.8 s saved at every start."""

import base64
import subprocess
import tempfile
import uuid
from pathlib import Path

from outbox.testing.servers import jars, jvm
from outbox.testing.servers.failure import ServerFailed

CHECKPOINT = "bootstrap.checkpoint"
"""The features of a new cluster. Without it they are all 0, and there is no group protocol of KIP-848."""


def new_id() -> str:
    """A cluster's or directory's id, as Kafka writes them."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):  # Kafka's command lines would take it for an option
            return text


def format_directory(directory: Path, *, cluster: str, node: int) -> None:
    """Make `directory` the empty log directory of `node` in `cluster`."""
    directory.mkdir()
    (directory / CHECKPOINT).write_bytes(_checkpoint())
    (directory / "meta.properties").write_text(
        f"version=1\ncluster.id={cluster}\nnode.id={node}\ndirectory.id={new_id()}\n"
    )


def _checkpoint() -> bytes:
    """One run of Kafka's own tool, kept for all later ones."""
    kept = jars.home() / CHECKPOINT
    with jars.locked(CHECKPOINT):
        if not kept.exists():
            _run_tool(kept)
    return kept.read_bytes()


def _run_tool(kept: Path) -> None:
    with tempfile.TemporaryDirectory(dir=jars.home()) as temporary:
        properties = Path(temporary) / "server.properties"
        properties.write_text(
            "process.roles=broker,controller\nnode.id=1\ncontroller.listener.names=CONTROLLER\n"
            "controller.quorum.voters=1@127.0.0.1:9093\n"
            "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n"
            f"log.dirs={temporary}/log\n"
        )
        done = subprocess.run(
            jvm.command("kafka.tools.StorageTool", "format", "-t", new_id(), "-c", str(properties)),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise ServerFailed(f"Kafka could not format its storage.\n{done.stdout}{done.stderr}")
        (Path(temporary) / "log" / CHECKPOINT).rename(kept)
