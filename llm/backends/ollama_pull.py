"""Has Ollama pull a model from its own registry, and tells how far it is.

Ollama downloads and checks by itself, and goes on where it stopped. What is said here are its own lines:
a model is several layers, each with a digest, a total and what is completed of it.

Source of the shapes: ollama's docs/api.md, "Pull a Model".
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from llm.backends.address import guard_clear_text
from llm.backends.http import HttpExchange
from llm.backends.hub import OnProgress, PullProgress
from llm.backends.ollama import ollama_address
from llm.config import LLMConfig
from llm.errors import BadReply, LLMError, ModelNotFound

_LINES_BYTES = 1024 * 1024 * 1024
"""A slow pull of hours says more than any reply may have."""


async def pull_by_ollama(name: str, config: LLMConfig, *, on_progress: OnProgress = lambda _: None) -> int:
    """Have the server pull a model; the bytes of its layers.

    Args:
        name: as Ollama calls it.
        config: where the server is.
        on_progress: called with every line.

    Raises:
        ModelNotFound: its registry has no such model.
        LLMError: the server cannot be reached, or failed; it keeps what it has.
    """
    address = ollama_address(config)
    guard_clear_text(address, key=None, backend="ollama")
    patient = config.with_values(max_reply_bytes=_LINES_BYTES)
    exchange = HttpExchange(patient, way_out="start it with `ollama serve`, or set LLM_API_BASE to it")
    layers: dict[str, tuple[int, int]] = {}
    status = ""
    try:
        lines = exchange.stream("POST", address.full_url("/api/pull"), body={"model": name, "stream": True})
        async with aclosing(lines):
            async for line in lines:
                status = _noted(line, layers, on_progress)
    except LLMError as error:
        if "file does not exist" in str(error) or "not found" in str(error):
            msg = f"Ollama's registry has no model {name!r}; see https://ollama.com/library"
            raise ModelNotFound(msg) from error
        raise
    finally:
        await exchange.aclose()
    if status != "success":
        said = status or "it said nothing"
        msg = f"Ollama at {address.origin} stopped pulling {name} ({said}); pull it again"
        raise BadReply(msg)
    return sum(total for _, total in layers.values())


def _noted(line: Any, layers: dict[str, tuple[int, int]], on_progress: OnProgress) -> str:
    """Add one line to what is known, and tell it; its status."""
    if not isinstance(line, dict) or not isinstance(line.get("status"), str):
        msg = "Ollama gave a line of no use while it pulled; is it a model server?"
        raise BadReply(msg)
    digest, total, done = line.get("digest"), line.get("total", 0), line.get("completed", 0)
    if isinstance(digest, str) and isinstance(total, int) and isinstance(done, int) and total:
        layers[digest] = (done, total)
    status: str = line["status"]
    step = "downloading" if isinstance(digest, str) else "done" if status == "success" else status
    sums = [sum(values) for values in zip(*layers.values(), strict=True)] or [0, 0]
    on_progress(PullProgress(step, sums[0], sums[1]))
    return status
