"""Run llama.cpp's own HTTP server on loopback until stdin ends; see `llm.backends.child` for the protocol.

The settings line holds: `model` (path of a .gguf file), `name` (what replies call it), `key` (bearer key of
every endpoint but /health), `context_length`, `threads`, `idle_seconds`, `install` (how to get the engine);
and, where they apply, `slot_folder` (where states of prompts are saved) or `embedding` (the pooling: "own" is
the model's, "mean" for a model that names none).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any, TextIO

_LEAVE_SECONDS = 1.0
"""A running prompt cannot be interrupted from here, and there is nothing to save: leave soon."""

_BATCH = 128
"""Prompt tokens between two looks at whether the caller is gone: 0.7 s at 190 tokens/s. With the default of
2048 an abandoned prompt holds the only slot for 10 s and more; the speed of a prompt is the same."""

_CACHE_MIB = 64
"""Prompts of other conversations kept in memory; llama.cpp's default is 8192."""

_NOBODY = "https://nobody.invalid"
"""The only web page that a browser may let read an answer. The name can never be a page's (RFC 2606)."""


def take_stdout() -> TextIO:
    """Keep stdout for the protocol and send what the engine prints there to stderr."""
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return wire


def say(wire: TextIO, **message: Any) -> None:
    """Write one line to the parent."""
    wire.write(json.dumps(message, ensure_ascii=False) + "\n")
    wire.flush()


def parameters(xllamacpp: Any, settings: dict[str, Any]) -> Any:
    """What llama.cpp is started with."""
    made = xllamacpp.CommonParams()
    made.model.path = settings["model"]
    made.model_alias = {settings["name"]}
    made.api_keys = [settings["key"]]
    made.hostnames = ["127.0.0.1"]
    made.cors_origins = _NOBODY
    made.cors_credentials = False
    made.n_ctx = settings["context_length"]
    made.n_parallel = 1
    made.n_batch = made.n_ubatch = _BATCH
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = settings["threads"]
    made.cache_ram_mib = _CACHE_MIB
    made.sleep_idle_seconds = settings["idle_seconds"]
    made.warmup = False  # measured: the first answer comes 0.15 s sooner without
    made.ui = made.endpoint_slots = False  # saving and restoring a slot works all the same
    made.verbosity = 1  # errors only
    if settings.get("slot_folder"):
        made.slot_save_path = settings["slot_folder"] + os.sep
    if settings.get("embedding"):
        made.embedding = True
        # An encoder reads a whole text at once or not at all.
        made.n_batch = made.n_ubatch = settings["context_length"]
        if settings["embedding"] == "mean":
            made.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return made


def start(settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load the model: the server and the message for the parent.

    What the model remembers of a prompt is kept in 8 bits if the model allows it. With SmolLM2-135M and 4096
    tokens that is 44 MB less of 248; a prompt is read a fifth slower, and the answer comes as fast.
    """
    try:
        import xllamacpp  # noqa: PLC0415 - what may be missing is reported, not raised
    except ImportError as error:
        return None, failure("connection", f"xllamacpp cannot be imported ({error}); {settings['install']}")
    made = parameters(xllamacpp, settings)
    for kind in (xllamacpp.ggml_type.GGML_TYPE_Q8_0, xllamacpp.ggml_type.GGML_TYPE_F16):
        made.cache_type_k = made.cache_type_v = kind
        try:
            server = xllamacpp.Server(made)
        except RuntimeError:  # the reason is on stderr, which the parent reads
            continue
        return server, {"ready": {"address": server.listening_address}}
    text = f"llama.cpp cannot load {settings['model']}, which may be damaged or too new for it"
    return None, failure("model_not_found", text, stderr=True)


def failure(code: str, message: str, *, stderr: bool = False) -> dict[str, Any]:
    """A message that says why there is no engine; `stderr`: the rest of the reason is there."""
    return {"error": {"code": code, "message": message, "stderr": stderr}}


def watch_parent(ended: threading.Event) -> None:
    """Wait for the end of stdin; leave soon after it even when the engine does not."""
    for _ in sys.stdin:
        continue
    ended.set()
    time.sleep(_LEAVE_SECONDS)
    os._exit(0)


def main() -> int:
    """Serve until stdin ends."""
    os.umask(0o077)  # the states of prompts are nobody else's business
    wire = take_stdout()
    settings = json.loads(sys.stdin.readline())
    ended = threading.Event()
    threading.Thread(target=watch_parent, args=(ended,), daemon=True).start()
    server, message = start(settings)
    say(wire, **message)
    if server is None:
        return 1
    ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
