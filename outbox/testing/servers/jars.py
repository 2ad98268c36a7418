"""Apache Kafka's jars: resolved once by Maven from a pinned pom.xml, then kept in the cache."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outbox.testing.servers import workspace
from outbox.testing.servers.failure import ServerFailed, ServerUnavailable

POM = Path(__file__).with_name("pom.xml")
GIVE = "or give a running cluster in OUTBOX_KAFKA_BOOTSTRAP_SERVERS."
HOW_JAVA = (
    "Java 17 or newer is not on this machine. Install it (Debian: apt install default-jre-headless), " + GIVE
)
HOW_MAVEN = (
    "Kafka's jars are not in the cache and Maven is not on this machine. "
    f"Install it (Debian: apt install maven), {GIVE}"
)


def java() -> str:
    """The Java program, from JAVA_HOME or the PATH."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None) or shutil.which("java")
    if found is None:
        raise ServerUnavailable("kafka", HOW_JAVA)
    return found


def home() -> Path:
    """Where everything derived from this pom.xml is cached."""
    return workspace.cache() / f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"


def cached() -> list[Path] | None:
    """The jars, if an earlier call resolved them; never asks the network."""
    jars = home() / "jars"
    return sorted(jars.glob("*.jar")) if jars.is_dir() else None


def resolve() -> list[Path]:
    """The jars, downloaded if need be (45 MB, some seconds)."""
    if found := cached():
        return found
    with locked("jars"):
        return cached() or _download()


@contextmanager
def locked(what: str) -> Iterator[None]:
    """One process at a time makes `what` in the cache."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download() -> list[Path]:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServerUnavailable("kafka", HOW_MAVEN)
    with tempfile.TemporaryDirectory(dir=home()) as temporary:
        # A copy: Maven leaves a `target` directory beside the file it reads.
        pom = shutil.copy(POM, temporary)
        done = subprocess.run(
            [
                *(maven, "--batch-mode", "--quiet", "--file", pom, "dependency:copy-dependencies"),
                *("-DincludeScope=runtime", f"-DoutputDirectory={temporary}/jars"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600,
            env={**os.environ, "MAVEN_OPTS": f"{os.environ.get('MAVEN_OPTS', '')} -XX:-UsePerfData".strip()},
        )
        if done.returncode != 0:
            raise ServerFailed(
                f"Maven could not resolve {POM.name}; is its repository reachable?\n{done.stdout}"
            )
        (Path(temporary) / "jars").rename(home() / "jars")
    return cached() or []
