"""Choose whom a server runs as: PostgreSQL refuses root."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine; None instead of an Account means: whoever we are."""

    name: str
    uid: int
    gid: int

    def own(self, path: Path) -> None:
        """Hand `path` to this account."""
        os.chown(path, self.uid, self.gid)

    def may_enter(self, path: Path) -> bool:
        """Can this account reach `path` through all its parents, by the rights of others at least?"""
        return all(p.stat().st_mode & 0o001 for p in [path, *path.parents])


def unprivileged() -> Account | None:
    """The account for a server that refuses root: `postgres` if there is one, else `nobody`."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    return None
