"""The machine that the service is installed on: its kind, its folders, its programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Platform = Literal["linux", "macos"]

CALL_LIMIT_S = 400.0
"""The longest that one command may take: a start waits for READY, which the unit gives five minutes."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended.

    Attributes:
        code: its exit status; 127 when the program is not there, 124 when it took too long.
        out: what it wrote to standard output.
        err: what it wrote to standard error.
    """

    code: int
    out: str = ""
    err: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where things are and what can be called.

    Attributes:
        platform: the kind of system.
        root: the folder that stands for `/`; with another one nothing is called.
        uid: the user who installs.
        home: that user's home.
        environ: the environment.
    """

    platform: Platform = field(default_factory=lambda: "macos" if sys.platform == "darwin" else "linux")
    root: Path = Path("/")
    uid: int = field(default_factory=os.getuid)
    home: Path = field(default_factory=Path.home)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def is_real(self) -> bool:
        """Whether this is the machine itself, not a folder that stands for one."""
        return self.root == Path("/")

    @property
    def is_this_kind(self) -> bool:
        """Whether the machine that runs this is of the same kind."""
        return (self.platform == "macos") == (sys.platform == "darwin")

    def place(self, path: Path | str) -> Path:
        """Where `path` really is."""
        return self.root / str(path).lstrip("/")

    def runs_systemd(self) -> bool:
        """Whether systemd started this machine, as sd_booted(3) finds out."""
        return self.place("/run/systemd/system").is_dir()

    def has(self, program: str) -> bool:
        """Whether there is such a program."""
        return shutil.which(program, path=self.environ.get("PATH")) is not None

    def call(self, *words: str) -> Done:
        """Run a command to its end."""
        try:
            done = subprocess.run(  # noqa: S603 - commands of ours, no shell
                words,
                env=self.calling_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=CALL_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Done(124, err=f"{words[0]} did not end within {CALL_LIMIT_S:g} s")
        except OSError as error:
            return Done(127, err=f"{words[0]}: {error.strerror}")
        return Done(done.returncode, done.stdout, done.stderr)

    def calling_environment(self) -> dict[str, str]:
        """The environment of a command; systemctl --user needs to know where the user's manager listens."""
        environment = {**self.environ, "SYSTEMD_PAGER": "cat", "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"}
        runtime = f"/run/user/{self.uid}"
        if "XDG_RUNTIME_DIR" not in environment and Path(runtime).is_dir():
            environment["XDG_RUNTIME_DIR"] = runtime
        return environment


def shown(words: Sequence[str]) -> str:
    """A command line as a person would type it."""
    import shlex  # noqa: PLC0415 - only where one is shown

    return shlex.join(words)
