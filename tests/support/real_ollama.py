"""A genuine Ollama server with the small packaged model, as any user of it would run it.

It has a port, a home and a store of models of its own; nothing of the developer's Ollama is touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from llm.backends import llamacpp
from tests.support.get_ollama import BINARY, get_ollama

MODEL = "smollm2:135m"
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_ADDRESS = re.compile(r"Listening on (127\.0\.0\.1:\d+)")

_TURNS = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"


class RealOllama:
    """Made and started when its address is first asked for, ended by `close`.

    Raises:
        Unavailable: from `address`, on a machine that cannot have it.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._folder: Path | None = None
        self._address = ""
        self._log: list[str] = []

    @property
    def address(self) -> str:
        """Scheme, host and port."""
        if self._process is None:
            self._start()
            self.create(MODEL, Path(llamacpp.model_file(MODEL)))
        return self._address

    @property
    def log(self) -> str:
        """What the server wrote until now."""
        return "".join(self._log)

    def runners(self) -> list[psutil.Process]:
        """The processes that hold a loaded model, one for each."""
        return [] if self._process is None else psutil.Process(self._process.pid).children()

    def kill_runners(self) -> None:
        """End them as the kernel does when memory is short."""
        for runner in self.runners():
            runner.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """End the server and its runners, and remove what they wrote."""
        if self._process is not None:
            ours = [*self.runners(), psutil.Process(self._process.pid)]
            self._process.terminate()
            _, alive = psutil.wait_procs(ours, timeout=_STOP_SECONDS)
            for process in alive:
                process.kill()
            self._process.wait()
            assert self._process.stderr is not None
            self._process.stderr.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        binary = get_ollama()
        self._folder = Path(tempfile.mkdtemp(prefix="real-ollama-"))
        self._process = subprocess.Popen(
            [str(binary), "serve"],
            env=_environment(self._folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        listening = threading.Event()
        threading.Thread(target=self._follow, args=(listening,), daemon=True).start()
        if not listening.wait(_START_SECONDS) or not self._address:
            msg = f"Ollama did not start: {self.log[-2000:]}"
            raise RuntimeError(msg)

    def _follow(self, listening: threading.Event) -> None:
        """Keep the log, and find in it the port that the server was given."""
        assert self._process is not None
        assert self._process.stderr is not None
        try:
            for line in self._process.stderr:
                self._log.append(line)
                found = _ADDRESS.search(line)
                if found is not None:
                    self._address = f"http://{found[1]}"
                    listening.set()
        except ValueError:  # closed
            pass
        listening.set()

    def create(self, name: str, weights: Path) -> None:
        """`ollama create` from one GGUF file, on the server that was started."""
        with weights.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        with weights.open("rb") as file:
            size = {"Content-Length": str(weights.stat().st_size)}
            _post(f"{self._address}/api/blobs/{digest}", file, size)
        wanted = {
            "model": name,
            "files": {weights.name: digest},
            "template": f"{_TURNS}<|im_start|>assistant\n",
            # One thread: two that share their cores with other work wait for each other most of the time.
            "parameters": {"stop": ["<|im_start|>", "<|im_end|>"], "num_thread": 1},
            "stream": False,
        }
        _post(f"{self._address}/api/create", json.dumps(wanted).encode(), {})


def _environment(folder: Path) -> dict[str, str]:
    """The server's whole environment; port 0 is any free one."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LD_LIBRARY_PATH": str(BINARY.parent),
        "HOME": str(folder),
        "OLLAMA_MODELS": str(folder / "models"),
        "OLLAMA_HOST": "127.0.0.1:0",
        "OLLAMA_NUM_GPU": "0",  # this build asks for 999 layers on a GPU otherwise, and aborts
        "OLLAMA_NUM_PARALLEL": "1",
        "OLLAMA_KEEP_ALIVE": "10m",
    }


def _post(url: str, body: Any, headers: dict[str, str]) -> None:
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=_START_SECONDS) as response:
        response.read()
