"""Start Kafka's programs quickly: a small heap, a fast compiler, and classes loaded from an archive."""

import hashlib
from pathlib import Path

from outbox.testing.servers import jars

FLAGS = (
    "-Xms64m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
)
"""384 MB hold three brokers' worth of tests; the first compiler alone starts in half the time.
Performance data would leave a directory in /tmp."""

LOGGING = Path(__file__).with_name("log4j2.properties")


def command(main: str, *arguments: str, flags: tuple[str, ...] = ()) -> list[str]:
    """A command line that runs class `main` on Kafka's jars."""
    path = ":".join(map(str, jars.resolve()))
    logging = f"-Dlog4j2.configurationFile={LOGGING}"
    return [jars.java(), *FLAGS, *flags, logging, "-cp", path, main, *arguments]


def archive() -> Path:
    """Where the class archive for this Java and these jars lies; a wrong one would only be ignored."""
    java = Path(jars.java()).resolve()
    told = java.stat()
    key = hashlib.sha256(f"{java} {told.st_size} {told.st_mtime_ns}".encode()).hexdigest()[:12]
    return jars.home() / f"classes-{key}.jsa"


def sharing() -> tuple[str, ...]:
    """Flags that read the archive, if it has been written."""
    path = archive()
    return (f"-XX:SharedArchiveFile={path}", "-Xshare:auto", "-Xlog:cds=off") if path.exists() else ()
