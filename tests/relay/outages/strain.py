"""What a relay takes from the machine while something is wrong: processor time, memory, log lines."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.relay.process import RelayProcess


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Its memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) // 1024


@dataclass
class Strain:
    """From its making on."""

    relay: RelayProcess

    def __post_init__(self) -> None:
        self._began, self._cpu = time.monotonic(), cpu(self.relay.pid)
        self._resident, self._lines = resident(self.relay.pid), self.relay.log.count("\n")

    def said(self) -> str:
        """How it stands."""
        share = (cpu(self.relay.pid) - self._cpu) / (time.monotonic() - self._began)
        return f"{share:.1%} of a core, {self.relay.log.count(chr(10)) - self._lines} lines"

    def faults(self, *, core: float = 0.15, growth: int = 25, lines: float = 0.5) -> list[str]:
        """What is more than it may be: share of a core, MB more than at first, log lines a second."""
        passed = time.monotonic() - self._began
        share = (cpu(self.relay.pid) - self._cpu) / passed
        grown = resident(self.relay.pid) - self._resident
        said = self.relay.log.count("\n") - self._lines
        wrong = []
        if share > core:
            wrong.append(f"busy: {share:.0%} of a core")
        if grown > growth:
            wrong.append(f"grows: {grown} MB")
        if said > 10 + lines * passed:
            wrong.append(f"noisy: {said} lines in {passed:.0f} s")
        return wrong
