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
import threading
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
        self._folder = folder
        self._counters: tuple[tuple[int, int], ...] = ()
        self._last: list[int] = []
        self._shares: dict[str, float] = {}
        self.opened: threading.Thread | None = None

    def open(self) -> None:
        """Look for counters that can be read."""
        # A package is intel-rapl:0; intel-rapl:0:0 is a part of it, and would be counted twice.
        packages = [each for each in sorted(self._folder.glob("intel-rapl:*")) if each.name.count(":") == 1]
        counters = tuple(filter(None, map(_counter, packages)))
        self._last = _read(counters) or []
        if self._last:
            self._counters = counters

    def begin(self, call_id: str) -> None:
        """A call begins; with the first one, counters are looked for, elsewhere than on the event loop."""
        if self.opened is None:
            self.opened = threading.Thread(target=self.open, name="llm-energy", daemon=True)
            self.opened.start()
        self._divide()
        self._shares[call_id] = 0.0

    def end(self, call_id: str) -> float | None:
        """A call has ended: its joules, None when they cannot be told."""
        self._divide()
        found = self._shares.pop(call_id, None)
        return found if self._counters else None

    def close(self) -> None:
        """Give back the files."""
        for handle, _ in self._counters:
            os.close(handle)
        self._counters = ()

    def _divide(self) -> None:
        """Give each call under way its part of what was used since the last look."""
        if not self._counters:
            return
        now = _read(self._counters)
        if now is None:
            self.close()
            return
        used = 0
        for before, after, (_, limit) in zip(self._last, now, self._counters, strict=True):
            used += after - before if after >= before else after + limit - before  # the counter wraps round
        self._last = now
        for call_id in self._shares:
            self._shares[call_id] += used * _MICRO / len(self._shares)


def _counter(package: Path) -> tuple[int, int] | None:
    """The open counter and where it wraps round, None when it may not be read."""
    with suppress(OSError, ValueError):
        limit = int((package / "max_energy_range_uj").read_text())
        return os.open(package / "energy_uj", os.O_RDONLY | os.O_CLOEXEC), limit
    return None


def _read(counters: tuple[tuple[int, int], ...]) -> list[int] | None:
    """The counters in microjoules; some microseconds, from the kernel's memory."""
    try:
        return [int(os.pread(handle, 32, 0)) for handle, _ in counters]
    except (OSError, ValueError):
        return None
