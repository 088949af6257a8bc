"""Run one mlx-lm model: JSON lines in, JSON lines out, until stdin ends; see `llm.backends.child`.

One thread, the main one, owns everything of mlx: a model loaded in one thread and used in another fails.
A second thread reads stdin. The settings line holds: `model` (folder or hub id; a BERT makes vectors, any
other model answers), `adapter` (folder or None), `context_length`, `max_reply_bytes`, `rows` (most requests
at once), `prefix_bytes` (memory for beginnings of prompts), `environ` (variables that must not be in the
process's environment block), `scratch` (a private folder for what mlx compiles), `install` and `way_out`
(how to get engine and model).

A request is {"id", "messages", "tools", "think", "temperature", "top_p", "max_tokens", "seed", "schema",
"stop", "stream"}. With "stream" its text comes as {"id", "text"} and {"id", "thinking"}; the last message is
{"id", "done": true, "text", "thinking", "tool_calls", "finish", "prompt_tokens", "prompt_cached",
"completion_tokens", "thinking_tokens"} or {"id", "done": true, "error": {"code", "message"}}.
A request {"id", "embed": [texts]} is answered with several {"id", "places", "vectors"}, numbers in base64,
and {"id", "done": true, "prompt_tokens"}. {"cancel": id} stops a request between two steps; there is no
answer then.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType


def find_siblings() -> None:
    """Make `llm.engines` importable from where this file lies, and nothing else of the package.

    We are run by path and in isolation. Another copy of the package may be installed, and a folder on
    `sys.path` would bring in everything that lies beside the package.
    """
    package = ModuleType("llm")
    package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["llm"] = package


def main() -> int:
    """Serve until stdin ends."""
    from llm.engines.mlx_protocol import Inbox, take_stdout  # noqa: PLC0415 - see find_siblings
    from llm.engines.mlx_service import run  # noqa: PLC0415
    from llm.engines.mlx_setup import prepare_environment  # noqa: PLC0415

    wire = take_stdout()
    settings = json.loads(sys.stdin.readline())
    prepare_environment(settings)
    return run(wire, Inbox(sys.stdin), settings)


if __name__ == "__main__":
    find_siblings()
    sys.exit(main())
