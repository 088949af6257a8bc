"""Backend name -> class: the built-in table first, entry points second; each imported when first used."""

from __future__ import annotations

import logging
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from llm.errors import ConfigurationError

if TYPE_CHECKING:
    from llm.client import LLMClient

ENTRY_POINTS = "askfirst.backends"
"""Entry-point group: `name = "package.module:Class"`, the class being an `LLMClient`."""

_BUILT_IN = {
    "ollama": "llm.backends.ollama:OllamaBackend",
    "llamacpp": "llm.backends.llamacpp:LlamaCppBackend",
    "mlx": "llm.backends.mlx:MLXBackend",
    "remote": "llm.backends.remote:RemoteBackend",
    "mock": "llm.backends.mock:MockBackend",
}

_log = logging.getLogger(__name__)


def backend_names() -> list[str]:
    """Every backend that can be chosen by name."""
    return sorted({*_BUILT_IN, *(entry.name for entry in metadata.entry_points(group=ENTRY_POINTS))})


def backend_class(name: str) -> type[LLMClient]:
    """The class behind `name`; an unknown name warns, lists the known ones and gives the mock backend.

    Raises:
        ConfigurationError: a plugin registered the name but cannot be imported or is no `LLMClient`.
    """
    if name in _BUILT_IN:
        return _load(_BUILT_IN[name])
    for entry in metadata.entry_points(group=ENTRY_POINTS, name=name):
        return _load(entry.value)
    known = ", ".join(backend_names())
    _log.warning("unknown LLM backend %r, using 'mock'; LLM_BACKEND is one of %s", name, known)
    return _load(_BUILT_IN["mock"])


def _load(path: str) -> type[LLMClient]:
    from llm.client import LLMClient  # noqa: PLC0415 - the registry is listed by --help, which needs no client

    module, _, attribute = path.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a plugin's module may raise anything while it is imported
        msg = f"the LLM backend at {path} cannot be loaded: {str(error) or type(error).__name__}"
        raise ConfigurationError(msg) from error
    if not (isinstance(found, type) and issubclass(found, LLMClient)):
        msg = f"the LLM backend at {path} is not a subclass of llm.LLMClient"
        raise ConfigurationError(msg)
    return found
