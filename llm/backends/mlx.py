"""MLXBackend: mlx-lm in a child process; made for Apple silicon, runs on Linux too."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from llm.backends.child import Launch, engine_environment
from llm.backends.host import EngineHost
from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import ConfigurationError, ConnectionFailed, LLMError, ModelNotFound
from llm.events import Observer
from llm.middleware.base import Middleware
from llm.types import FinishReason, LLMRequest, LLMResponse
from llm.wire.common import clean, no_answer

_SCRIPT = Path(__file__).parent.parent / "engines" / "mlx_worker.py"
_INSTALL = "pip install 'askfirst[mlx]'"

_ROWS = 8
"""Most calls that are answered at once; each has a key-value cache of its own, the others wait in order."""

_PREFIX_BYTES = 256 * 1024 * 1024
"""Most memory for what the model has read before: system turns, conversations that go on."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)

_PRIVATE = ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
"""What the hub's downloads need and may hold a secret: given over stdin, in this and in lower case."""

_TRUE = frozenset({"1", "ON", "YES", "TRUE"})


def unavailable_reason(model: str) -> str | None:
    """Why `model` cannot run here, with the way out; None when it can. Imports and loads nothing.

    A model of the hub that is not here yet is no reason, unless downloads are off (`HF_HUB_OFFLINE`).
    """
    try:
        _require_engine()
        _source(model)
    except LLMError as error:
        return str(error)
    return None


def is_local(model: str) -> bool:
    """Whether the model's files are on this machine: a folder, or downloaded from the hub before."""
    if _folder(model).is_dir():
        return True
    snapshots = _hub_cache() / f"models--{model.replace('/', '--')}" / "snapshots"
    return any(snapshots.glob("*/config.json"))


def _source(model: str) -> str:
    """What mlx-lm is to load: an absolute folder or a hub id.

    Raises:
        ModelNotFound: it can be neither.
    """
    folder = _folder(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
            msg = f"{folder} holds no model for mlx-lm: config.json and model*.safetensors must be in it"
            raise ModelNotFound(msg)
        return str(folder.absolute())
    if _HUB_ID.fullmatch(model) is None:
        msg = (
            f"there is no folder {folder}; set LLM_MODEL to the folder of an MLX model or to an id of the hub"
        )
        raise ModelNotFound(msg)
    if _offline() and not is_local(model):
        msg = f"the model {model} is not on this machine and HF_HUB_OFFLINE is set; {_way_out(model)}"
        raise ModelNotFound(msg)
    return model


def _folder(model: str) -> Path:
    return Path(os.path.expanduser(model))  # noqa: PTH111 - Path.expanduser raises where there is no home


def _way_out(model: str) -> str:
    return f"get it with `hf download {model}` while online, or set LLM_MODEL to the folder of an MLX model"


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def _hub_cache() -> Path:
    """The folder of huggingface_hub's downloads (its documentation, "Environment variables")."""
    environ = os.environ
    cache = Path(environ.get("XDG_CACHE_HOME") or _folder("~/.cache"))
    home = Path(environ.get("HF_HOME") or cache / "huggingface")
    return Path(environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")


def _require_engine() -> None:
    if find_spec("mlx") is None or find_spec("mlx_lm") is None:
        msg = f"mlx-lm is not installed; {_INSTALL}"
        raise ConnectionFailed(msg)


def _private_environment() -> dict[str, str]:
    names = {*_PRIVATE, *(name.lower() for name in _PRIVATE)}
    return {name: os.environ[name] for name in names if name in os.environ}


def _private_folder(path: Path) -> Path:
    """A folder that only we can write to: mlx loads the libraries in it.

    Raises:
        ConfigurationError: it cannot be made, or somebody else could write to it.
    """
    try:
        for each in (path.parent, path):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        msg = f"the folder {path} cannot be made ({error.strerror}); set LLM_CACHE_DIR to a writable folder"
        raise ConfigurationError(msg) from error
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        msg = (
            f"others may write to {path}, from which mlx loads code; remove it or set LLM_CACHE_DIR elsewhere"
        )
        raise ConfigurationError(msg)
    return path.absolute()


class MLXBackend(LLMClient):
    """mlx-lm in a child process that owns the model; it starts at the first call.

    Calls are answered one after the other. Replies to a schema are held to it token by token.

    Args:
        config: `model` is the folder of an MLX model or an id of the Hugging Face hub, which is downloaded
            at the first call unless `HF_HUB_OFFLINE` is set.
        middleware: as in `LLMClient`.
        observers: as in `LLMClient`.
    """

    backend: ClassVar[str] = "mlx"

    def __init__(
        self, config: LLMConfig, *, middleware: Sequence[Middleware] = (), observers: Sequence[Observer] = ()
    ) -> None:
        super().__init__(config, middleware=middleware, observers=observers)
        self._host = EngineHost(self.backend, _SCRIPT, self._launch)

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Answer one request.

        Raises:
            ModelNotFound: the model is not here and cannot be had, or cannot be loaded.
            ConnectionFailed: mlx-lm is not installed.
            BadRequest: the prompt is longer than the context, or the schema cannot be followed.
            BadReply: the reply is too large or has no text.
            ServerError: the process died.
        """
        process = await self._host.running()
        answer = await process.call(_asked(request))
        return self._read(answer, request)

    async def health_check(self) -> bool:
        """Whether mlx-lm is installed and the model's files are on this machine; loads nothing."""
        return await asyncio.to_thread(self._can_run)

    def _can_run(self) -> bool:
        model = self.config.model
        return unavailable_reason(model) is None and is_local(model)

    def _read(self, answer: Mapping[str, Any], request: LLMRequest) -> LLMResponse:
        content = clean(answer["text"])
        finish: FinishReason = "length" if answer["finish"] == "length" else "stop"
        if not content and finish == "length":
            raise no_answer(request, thinking=True)
        return LLMResponse(
            content=content,
            model=request.model,
            backend=self.backend,
            finish_reason=finish,
            prompt_tokens=answer["prompt_tokens"],
            completion_tokens=answer["completion_tokens"],
        )

    async def _release(self) -> None:
        await self._host.aclose()

    def _launch(self) -> Launch:
        """What the child is started with."""
        _require_engine()
        config = self.config
        private = _private_environment()
        settings = {
            "model": _source(config.model),
            "context_length": config.context_length,
            "max_reply_bytes": config.max_reply_bytes,
            "rows": _ROWS,
            "prefix_bytes": _PREFIX_BYTES,
            "environ": private,
            "scratch": str(_private_folder(Path(config.cache_dir) / "mlx")),
            "install": _INSTALL,
            "way_out": _way_out(config.model),
        }
        return Launch(
            settings=settings,
            environ=engine_environment("HF_", "HUGGINGFACE_"),
            secrets=tuple(private.values()),
            reply_bytes=config.max_reply_bytes,
        )


def _asked(request: LLMRequest) -> dict[str, Any]:
    return {
        "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "schema": None if request.schema is None else dict(request.schema),
        "think": False,
        "tools": [],
        "stop": [],
        "stream": False,
    }
