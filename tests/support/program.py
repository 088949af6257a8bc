"""Runs the real program as a process, in a folder and an environment of its own."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0
"""Far above what any command takes, even on a busy machine."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)

    def __str__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


@dataclass
class Program:
    """`python -P -m daemon` in `folder`, which starts with a copy of `config/` when it was made by `copied`.

    Attributes:
        folder: the working folder.
        environment: variables on top of a clean environment.
        options: options of the interpreter.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ("-P",)

    @classmethod
    def copied(cls, folder: Path, **environment: str) -> Program:
        """The program beside a copy of the shipped configuration and its examples, with the mock model."""
        shutil.copytree(ROOT / "config", folder / "config")
        return cls(folder, {"LLM_BACKEND": "mock", **environment})

    @classmethod
    def with_garden(cls, folder: Path, *beds: str, settings: str = "", **environment: str) -> Program:
        """The program with one small agent, `tests/support/garden.py`, as a plugin, and the mock model.

        Args:
            folder: gets config/askfirst.toml, config/beds.txt and data/plugins/garden.py.
            beds: the lines of beds.txt, such as "leeks dry".
            settings: more lines of the agent's table.
            environment: more variables.
        """
        config, plugins = folder / "config", folder / "data" / "plugins"
        config.mkdir()
        plugins.mkdir(parents=True, mode=0o700)
        (folder / "data").chmod(0o700)
        (config / "beds.txt").write_text("".join(f"{bed}\n" for bed in beds), encoding="utf-8")
        text = f'[daemon]\ndata_dir = "../data"\n[web]\nport = 0\n[agents.garden]\n{settings}\n'
        (config / "askfirst.toml").write_text(text, encoding="utf-8")
        shutil.copy(ROOT / "tests" / "support" / "garden.py", plugins)
        return cls(folder, {"LLM_BACKEND": "mock", **environment})

    @property
    def beds(self) -> Path:
        """The file that the garden agent reads and changes."""
        return self.folder / "config" / "beds.txt"

    def run(self, *arguments: str, stdin: str = "", limit: float = LIMIT_S, **environment: str) -> Ended:
        """Run one command to its end."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.whole_environment(environment),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def call(self, *arguments: str, stdin: str = "", **environment: str) -> Ended:
        """As `run`, inside this process: the same program without the half second of its start."""
        from daemon.cli import run

        out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
        environment = self.whole_environment(environment)
        standard_input, sys.stdin = sys.stdin, io.StringIO(stdin)
        os.environ.clear()
        os.environ.update(environment)
        try:
            with chdir(self.folder), redirect_stdout(out), redirect_stderr(err):
                code = run(arguments)
        finally:
            sys.stdin = standard_input
            os.environ.clear()
            os.environ.update(before)
        return Ended(code, out.getvalue(), err.getvalue())

    @contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Run the program in the background; it is killed at the end if it is still there."""
        with subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.whole_environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        return [sys.executable, *self.options, "-m", "daemon", *arguments]

    def whole_environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """A small environment without any setting of the developer's own."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "LOGNAME": "ana",
            "USER": "ana",
            "OLLAMA_HOST": "http://127.0.0.1:1",  # nobody listens there
            "PYTHONPATH": str(ROOT),
            **coverage,
            **self.environment,
            **more,
        }
