"""What mlx-lm needs on this machine: itself, a model, perhaps an adapter, a private folder. Loads nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm.errors import ConfigurationError, ConnectionFailed, LLMError, ModelNotFound
from llm.types import Capabilities

INSTALL = "pip install 'askfirst[mlx]'"
"""How to get the engine."""

_ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)

_PRIVATE = ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
"""What the hub's downloads need and may hold a secret: given over stdin, in this and in lower case."""

_TRUE = frozenset({"1", "ON", "YES", "TRUE"})


def unavailable_reason(model: str) -> str | None:
    """Why `model` cannot run here, with the way out; None when it can. Imports and loads nothing.

    A model of the hub that is not here yet is no reason, unless downloads are off (`HF_HUB_OFFLINE`).
    """
    try:
        require_engine()
        source(model)
    except LLMError as error:
        return str(error)
    return None


def is_local(model: str) -> bool:
    """Whether the model's files are on this machine: a folder, or downloaded from the hub before."""
    if _folder(model).is_dir():
        return True
    return any(_snapshots(model))


def _snapshots(model: str) -> Iterator[Path]:
    """The configuration files of the versions of a model that were downloaded from the hub."""
    return (_hub_cache() / f"models--{model.replace('/', '--')}" / "snapshots").glob("*/config.json")


def source(model: str) -> str:
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
        msg = f"the model {model} is not on this machine and HF_HUB_OFFLINE is set; {way_out(model)}"
        raise ModelNotFound(msg)
    return model


def _folder(model: str) -> Path:
    return Path(os.path.expanduser(model))  # noqa: PTH111 - Path.expanduser raises where there is no home


def way_out(model: str) -> str:
    """How to get a model."""
    return f"get it with `hf download {model}` while online, or set LLM_MODEL to the folder of an MLX model"


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def _hub_cache() -> Path:
    """The folder of huggingface_hub's downloads (its documentation, "Environment variables")."""
    environ = os.environ
    cache = Path(environ.get("XDG_CACHE_HOME") or _folder("~/.cache"))
    home = Path(environ.get("HF_HOME") or cache / "huggingface")
    return Path(environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")


def require_engine() -> None:
    """Raise ConnectionFailed if mlx-lm is not installed."""
    if find_spec("mlx") is None or find_spec("mlx_lm") is None:
        msg = f"mlx-lm is not installed; {INSTALL}"
        raise ConnectionFailed(msg)


def private_environment() -> dict[str, str]:
    """The variables that the engine needs and that must not be seen in its environment."""
    names = {*_PRIVATE, *(name.lower() for name in _PRIVATE)}
    return {name: os.environ[name] for name in names if name in os.environ}


def private_folder(path: Path) -> Path:
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


def adapter_folder(path: str | None) -> str | None:
    """The absolute folder of a LoRA adapter, None without one.

    Raises:
        ModelNotFound: there is none in it.
    """
    if not path:
        return None
    folder = _folder(path)
    missing = [name for name in _ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        msg = (
            f"{folder} holds no adapter: {' and '.join(missing)} must be in it, as `mlx_lm.lora` "
            "writes them; set LLM_ADAPTER_PATH to such a folder or leave it unset"
        )
        raise ModelNotFound(msg)
    return str(folder.absolute())


def capabilities(model: str) -> Capabilities:
    """What a model's files say that it can do; the cautious answer while it is not on this machine."""
    folder = _local_folder(model)
    about = _read_json(folder / "config.json") if folder is not None else {}
    if folder is None or about.get("model_type") == "bert":
        bert = folder is not None
        return Capabilities(model=model, chat=not bert, embedding=bert)
    template = _template(folder)
    length = about.get("max_position_embeddings")
    return Capabilities(
        model=model,
        schema=find_spec("llguidance") is not None,
        tools="tool_call" in template.lower(),
        thinking="<think>" in template,
        context_length=length if isinstance(length, int) else None,
    )


def _local_folder(model: str) -> Path | None:
    if _folder(model).is_dir():
        return _folder(model)
    return next((file.parent for file in _snapshots(model)), None)


def _template(folder: Path) -> str:
    """The text of the chat template, wherever it is kept."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    return json.dumps(_read_json(folder / "tokenizer_config.json").get("chat_template", ""))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
