"""What a worker may use, and what its end means, in words."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass

from agents.confine import signal_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one worker may use.

    Attributes:
        agent: the agent's name, for the way out in messages.
        memory_mb: most memory of each of its processes, MB of address space.
        cpu_seconds: most CPU time of each of its processes.
        max_bytes: most bytes that it may hand over.
    """

    agent: str
    memory_mb: int
    cpu_seconds: float
    max_bytes: int

    def too_much_memory(self) -> str:
        """What is said of a worker that wanted more memory."""
        return f"it used more than {self.memory_mb} MB of memory; raise {self._key('max_memory_mb')}"

    def too_many_bytes(self) -> str:
        """What is said of a worker that handed over too much."""
        return f"it handed over more than {self.max_bytes:,} bytes; raise {self._key('max_bytes')}"

    def death(self, returncode: int) -> str:
        """How its process ended although it had something to do.

        Args:
            returncode: its exit code, or the negative number of the signal that killed it.
        """
        if returncode >= 0:
            return f"its process ended by itself, with exit code {returncode}, before it had answered"
        killed = f"its process was killed by {signal_name(returncode)}"
        if -returncode == signal.SIGXCPU:
            seconds = math.ceil(self.cpu_seconds)
            return f"{killed}: it used more than {seconds} s of CPU time; raise {self._key('max_cpu')}"
        if -returncode == signal.SIGKILL:
            return f"{killed}, by somebody, or by the system because memory was short"
        return killed

    def _key(self, name: str) -> str:
        return f"agents.{self.agent}.{name}"
