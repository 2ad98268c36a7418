"""Fetch a PgBouncer that holds prepared statements (1.21 and newer), beside the one that the system has.

`python -m outbox.testing.servers.pgbouncer_newer` prints the program, for OUTBOX_PGBOUNCER. It comes from a
newer Debian with the libraries that it was built for; nothing is installed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from outbox.testing.servers import workspace
from outbox.testing.servers.account import unprivileged
from outbox.testing.servers.failure import ServerUnavailable

SUITE = "trixie"
PACKAGES = (
    "pgbouncer",
    *("libc6", "libgcc-s1", "libcares2", "libevent-2.1-7t64", "libssl3t64", "zlib1g", "libzstd1"),
    *("libpam0g", "libaudit1", "libcap-ng0", "libsystemd0", "libcap2"),
)
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

START = """#!/bin/sh
exec "{home}/{loader}" --library-path "{home}/{libraries}" "{home}/usr/sbin/pgbouncer" "$@"
"""


def program() -> Path:
    """The program, fetched once. Raises ServerUnavailable where it cannot be had."""
    home = workspace.cache() / f"pgbouncer-{SUITE}"
    start = home / "pgbouncer"
    account = unprivileged()
    if account is not None and not account.may_enter(home.parent):
        raise ServerUnavailable(
            "pgbouncer-1.21",
            f"PgBouncer runs as {account.name}, who may not enter {home.parent}; set OUTBOX_CACHE to another "
            "directory",
        )
    if not start.exists():
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            unpacked = _unpacked(Path(scratch))
            [loader] = unpacked.glob("usr/lib/*/ld-linux-*.so.*")
            place = loader.relative_to(unpacked)
            script = START.format(home=home, loader=place, libraries=place.parent)
            (unpacked / "pgbouncer").write_text(script)
            (unpacked / "pgbouncer").chmod(0o755)
            unpacked.rename(home)
    return start


def _unpacked(scratch: Path) -> Path:
    for name in ("lists/partial", "cache/archives/partial", "packages", "root"):
        (scratch / name).mkdir(parents=True)
    (scratch / "sources").write_text(f"deb [signed-by={KEYS}] http://deb.debian.org/debian {SUITE} main\n")
    places = {
        "Dir::Etc::sourcelist": scratch / "sources",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-q", *(word for name, value in places.items() for word in ("-o", f"{name}={value}"))]
    _run([*apt, "update"], scratch)
    _run([*apt, "download", *(f"{package}/{SUITE}" for package in PACKAGES)], scratch / "packages")
    root = scratch / "root"
    for package in (scratch / "packages").glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(root)], scratch)
    root.chmod(0o755)
    return root


def _run(command: list[str], directory: Path) -> None:
    try:
        said = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=False, timeout=600
        )
    except FileNotFoundError as error:
        raise ServerUnavailable(
            "pgbouncer-1.21", f"a newer PgBouncer is fetched with apt: {error}"
        ) from error
    if said.returncode != 0:
        raise ServerUnavailable("pgbouncer-1.21", f"{command[0]} fails: {said.stderr.strip()[-300:]}")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{program()}\n")
    except ServerUnavailable as error:
        sys.exit(str(error))
