"""What the machine's processor used during local calls, where the kernel counts it and lets us read it.

Linux counts the energy of Intel and AMD processors (RAPL, /sys/class/powercap). What is read is the whole
package: other programs' work and the idle draw are in it, memory, disk and power supply are not. Calls that
run at the same time share what was used meanwhile in equal parts, so a sum over calls is never more than the
machine's own. Since Linux 5.10 only root may read it unless the owner says otherwise (CVE-2020-8694), and a
Raspberry Pi has no such counter: its power chip tells the present power only, through a program that would
have to be started again and again. There a call's joules are unknown.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")

_MICRO = 1e-6


class EnergyMeter:
    """Reads the counters of all processor packages.

    Args:
        folder: where the kernel shows them.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._counters: list[tuple[int, int]] = []
        self._last: list[int] = []
        self._shares: dict[str, float] = {}
        # A package is intel-rapl:0; intel-rapl:0:0 is a part of it, and would be counted twice.
        for package in sorted(folder.glob("intel-rapl:[0-9]*")):
            if package.name.count(":") == 1:
                self._add(package)
        self._last = self._read() or []

    def _add(self, package: Path) -> None:
        with suppress(OSError, ValueError):
            limit = int((package / "max_energy_range_uj").read_text())
            self._counters.append((os.open(package / "energy_uj", os.O_RDONLY | os.O_CLOEXEC), limit))

    @property
    def works(self) -> bool:
        """Whether there is a counter that can be read."""
        return bool(self._last)

    def begin(self, call_id: str) -> None:
        """A call begins."""
        self._divide()
        self._shares[call_id] = 0.0

    def end(self, call_id: str) -> float | None:
        """A call has ended: its joules, None when they cannot be told."""
        self._divide()
        found = self._shares.pop(call_id, None)
        return found if self.works else None

    def close(self) -> None:
        """Give back the files."""
        for handle, _ in self._counters:
            os.close(handle)
        self._counters, self._last = [], []

    def _divide(self) -> None:
        """Give each call under way its part of what was used since the last look."""
        now = self._read()
        if now is None:
            self._last = []
            return
        used = 0
        for before, after, (_, limit) in zip(self._last, now, self._counters, strict=True):
            used += after - before if after >= before else after + limit - before  # the counter wraps round
        self._last = now
        for call_id in self._shares:
            self._shares[call_id] += used * _MICRO / len(self._shares)

    def _read(self) -> list[int] | None:
        """The counters in microjoules, None without any; some microseconds, from the kernel's memory."""
        if not self._counters:
            return None
        try:
            return [int(os.pread(handle, 32, 0)) for handle, _ in self._counters]
        except (OSError, ValueError):
            return None
