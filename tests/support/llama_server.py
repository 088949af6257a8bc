"""llama.cpp's own HTTP server with the small packaged model, as any user of it would run it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from llm.backends import llamacpp
from tests.support.loopback import LoopbackServer, SeenRequest

MODEL = "smollm2:135m"
KEY = "contract-key"


class LlamaServer:
    """Started when its address is first asked for, ended by `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    @property
    def address(self) -> str:
        """Scheme, host and port."""
        if self._process is None:
            self._process = _start()
            assert self._process.stdout is not None
            self._address = json.loads(self._process.stdout.readline())["ready"]["address"]
        return self._address

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate(timeout=20)  # closes its stdin, which ends it


def _start() -> subprocess.Popen[str]:
    script = Path(llamacpp.__file__).parent.parent / "engines" / "llamacpp_server.py"
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    settings = {
        "model": str(llamacpp.model_file(MODEL)),
        "name": MODEL,
        "key": KEY,
        "context_length": 2048,
        "threads": 1,
        "idle_seconds": 600,
        "install": "",
    }
    assert process.stdin is not None
    process.stdin.write(json.dumps(settings) + "\n")
    process.stdin.flush()
    return process


class Gateway(LoopbackServer):
    """Passes requests below `mount` on to a server that has no such path, as a company's gateway does."""

    def __init__(self, target: str, mount: str) -> None:
        super().__init__()
        self._target = target
        self._mount = mount

    @property
    def url(self) -> str:
        return self.origin + self._mount

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.removeprefix("http://").split(":")
        there, back = await asyncio.open_connection(host, int(port))
        headers = {**request.headers, "host": f"{host}:{port}", "connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        start = f"{request.method} {request.path.removeprefix(self._mount)} HTTP/1.1\r\n"
        back.write(f"{start}{lines}\r\n".encode("latin-1") + request.raw_body)
        try:
            while data := await there.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            back.close()
