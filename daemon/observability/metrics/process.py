"""What the system says of this process.

The library's own collector works on Linux only, and not in a hardened service.
"""

from __future__ import annotations

import time
from typing import Any

import psutil

from daemon.observability.metrics.families import Reading


class ProcessReader:
    """Reads what the system says of this process; call it in a thread: it reads files of /proc."""

    def __init__(self) -> None:
        self._process: Any = None
        self._started = time.time()

    def __call__(self) -> Reading:
        """The metrics that begin with `process_`."""
        known = {
            "process_cpu_seconds_total": time.process_time(),
            "process_start_time_seconds": self._started,
        }
        try:
            self._process = self._process or psutil.Process()
            known["process_resident_memory_bytes"] = float(self._process.memory_info().rss)
            known["process_open_fds"] = float(self._process.num_fds())
        except psutil.Error:
            pass
        return known
