"""A model server of OpenAI's kind in a thread: what it answers is decided by a word in the question."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class ScriptedModel:
    """Answers at `/MODEL/v1` on loopback, until it is closed; can be stopped and started again meanwhile.

    The last question decides: one with "hiccup" is refused the first time, "down" always with `small`,
    "forbidden" for good, "doubt" is answered "unsure" by `small`, "at once" a second later, so that others
    can share the answer.

    Attributes:
        asked: how many questions it was asked.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._hiccups = 0
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    def url(self, model: str) -> str:
        """The address for a client of `model`."""
        return f"http://127.0.0.1:{self._port}/{model}/v1"

    def start(self) -> None:
        """Answer, at the same address as before."""
        self._server = _Server(("127.0.0.1", self._port), _handler_of(self))
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Answer nobody: connections are refused."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer(self, model: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to one question."""
        self.asked += 1
        question = str(body["messages"][-1]["content"])
        if "at once" in question:
            time.sleep(1.0)  # so slow a model that an identical question comes meanwhile
        if "hiccup" in question:
            self._hiccups += 1
            if self._hiccups == 1:
                return 503, _refusal("in a moment")
        if "down" in question and model == "small":
            return 500, _refusal("out of order")
        if "forbidden" in question:
            return 400, _refusal("not that")
        text = "Leeks."
        if "doubt" in question:
            text = json.dumps({"dry": "unsure" if model == "small" else "yes"})
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return 200, {"model": model, "choices": [choice], "usage": USAGE}


USAGE = {
    "prompt_tokens": 40,
    "completion_tokens": 5,
    "total_tokens": 45,
    "prompt_tokens_details": {"cached_tokens": 16},
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


def _refusal(text: str) -> dict[str, Any]:
    return {"error": {"message": text}}


def _pieces(answer: dict[str, Any]) -> bytes:
    """An answer as a stream of events."""
    text = answer["choices"][0]["message"]["content"]
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": text}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": USAGE},
    ]
    lines = [json.dumps({"model": answer["model"], **chunk}) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in (*lines, "[DONE]")).encode()


def _handler_of(script: ScriptedModel) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": self._model}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/embeddings"):
                vectors = [{"index": n, "embedding": [1.0, 0.0]} for n, _ in enumerate(body["input"])]
                self._send(200, {"model": self._model, "data": vectors, "usage": USAGE})
                return
            status, answer = script.answer(self._model, body)
            if status == 200 and body.get("stream"):
                self._write(200, _pieces(answer), "text/event-stream")
            else:
                self._send(status, answer)

        @property
        def _model(self) -> str:
            return self.path.split("/")[1]

        def _send(self, status: int, body: dict[str, Any]) -> None:
            self._write(status, json.dumps(body).encode(), "application/json")

        def _write(self, status: int, data: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    return Handler
