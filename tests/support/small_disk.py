"""A disk of a few megabytes that can be filled for real: a tmpfs, which only root can mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux" or shutil.which("mount") is None,
    reason="only root can mount a small disk",
)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """`folder` as a disk of its own of that size; skips the test where this is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill the disk of `folder` with one file, but for about `leave` bytes; returns the file."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as stream:
        try:
            while (room := shutil.disk_usage(folder).free - leave) > 0:
                stream.write(bytes(min(room, 64 * 1024)))
        except OSError:
            pass
    return ballast
