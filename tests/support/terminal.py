"""What a program writes when a terminal is its standard output."""

from __future__ import annotations

import os
import pty
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What may change how text looks, and nothing else."""


def at_a_terminal(
    command: Sequence[str], environment: Mapping[str, str] = os.environ, folder: Path | None = None
) -> tuple[int, str]:
    """Run a command at a terminal of 400 columns.

    Returns:
        The exit code, and what was written, its line ends as the program wrote them.
    """
    process, terminal = pty.fork()
    if process == 0:  # the child: it becomes the program
        if folder is not None:
            os.chdir(folder)
        own = {**environment, "TERM": "xterm", "COLUMNS": "400", "PYTHONUTF8": "1"}
        os.execve(command[0], list(command), own)
    text = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the other end was closed
            break
        if not piece:
            break
        text += piece
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), text.decode().replace("\r\n", "\n")
