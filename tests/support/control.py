"""A daemon in the background with its log in a file, and a bare client of its control socket."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from daemon.control.places import SOCKET
from daemon.control.wire import PROTOCOL
from daemon.version import own_version
from tests.support.program import Ended, Program
from tests.support.waiting import seen_now

LIMIT_S = 30.0


BEDS = ("leeks dry", "kale wet", "beans dry")
"""What the garden agent finds; it proposes to water the dry ones."""


@dataclass
class Daemon:
    """A daemon that runs beside the test."""

    program: Program
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def socket(self) -> Path:
        """Its control socket."""
        return self.program.folder / "data" / SOCKET

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log so far."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def said(self, event: str) -> list[dict[str, Any]]:
        """The log lines of that event."""
        return [line for line in self.lines if line["event"] == event]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """The log line of that event, as soon as it is there `count` times."""
        seen_now(lambda: len(self.said(event)) >= count or self.process.poll() is not None)
        assert len(self.said(event)) >= count, self.log.read_text(encoding="utf-8")
        return self.said(event)[count - 1]

    def call(self, *arguments: str, **environment: str) -> Ended:
        """A command beside it."""
        return self.program.call(*arguments, **environment)

    def speaker(self) -> Speaker:
        """A connection that has said nothing yet."""
        return Speaker(self.socket)

    def stop(self) -> int:
        """End it in good order."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_S)


@contextmanager
def daemon_of(
    program: Program, *, log: str = "log", ready: bool = True, **environment: str
) -> Iterator[Daemon]:
    """A daemon, ready for commands; killed at the end if it is still there."""
    path = program.folder / log
    with path.open("wb") as file:
        process = subprocess.Popen(
            program.command("run"),
            cwd=program.folder,
            env=program.whole_environment(environment),
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
        daemon = Daemon(program, process, path)
        try:
            if ready:
                daemon.wait_for("askfirst is running")
            yield daemon
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


class Speaker:
    """Says to a daemon whatever the test wants."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT_S)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Go away."""
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes; nothing happens if the daemon has hung up."""
        try:
            self._socket.sendall(data)
        except OSError:
            return

    def end(self) -> None:
        """Say that nothing more comes."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def line(self) -> dict[str, Any] | None:
        """The next line, None at the end."""
        try:
            text = self._file.readline()
        except ConnectionError:
            return None
        return json.loads(text) if text else None

    def answer(self) -> dict[str, Any] | None:
        """The next line that is more than a sign of life."""
        while True:
            line = self.line()
            if line is None or "busy" not in line:
                return line

    def hello(self) -> dict[str, Any] | None:
        """Introduce ourselves as one of our commands does."""
        return self.ask("hello", version=own_version(), protocol=PROTOCOL)

    def ask(self, do: str, **given: Any) -> dict[str, Any] | None:
        """One request and its answer, both as plain JSON."""
        self.send(json.dumps({"do": do, "with": given}).encode() + b"\n")
        return self.answer()
