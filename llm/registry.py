"""Backend name -> class: the built-in table first, entry points second; each imported when first used."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from llm.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

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

_registered: dict[str, type[LLMClient]] = {}

_log = logging.getLogger(__name__)


def register_backend(name: str, backend: type[LLMClient]) -> None:
    """Make `backend` the one that the name `name` means, in this process.

    Args:
        name: what `LLM_BACKEND` and `LLMConfig.backend` say, in lower case.
        backend: a subclass of `LLMClient`.

    Raises:
        ConfigurationError: the name belongs to a built-in backend, or the class is no `LLMClient`.
    """
    if name in _BUILT_IN or name != name.strip().lower() or not name:
        msg = f"a backend cannot be called {name!r}; take a new name, in lower case"
        raise ConfigurationError(msg)
    _registered[name] = _checked(backend, f"{backend!r}")


def backend_names() -> list[str]:
    """Every backend that can be chosen by name."""
    return sorted({*_BUILT_IN, *_registered, *(entry.name for entry in _plugins())})


def _plugins(name: str | None = None) -> EntryPoints:
    """What other packages offer, under one name or all."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - 5 ms that a built-in backend does not need

    found = entry_points(group=ENTRY_POINTS)
    return found if name is None else found.select(name=name)


def backend_class(name: str) -> type[LLMClient]:
    """The class behind `name`; an unknown name warns, lists the known ones and gives the mock backend.

    Raises:
        ConfigurationError: a plugin registered the name but cannot be imported or is no `LLMClient`.
    """
    if name in _BUILT_IN:
        return _load(_BUILT_IN[name])
    if name in _registered:
        return _registered[name]
    for entry in _plugins(name):
        return _load(entry.value)
    known = ", ".join(backend_names())
    _log.warning("unknown LLM backend %r, using 'mock'; LLM_BACKEND is one of %s", name, known)
    return _load(_BUILT_IN["mock"])


def _load(path: str) -> type[LLMClient]:
    module, _, attribute = path.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a plugin's module may raise anything while it is imported
        msg = f"the LLM backend at {path} cannot be loaded: {str(error) or type(error).__name__}"
        raise ConfigurationError(msg) from error
    return _checked(found, f"the LLM backend at {path}")


def _checked(found: object, what: str) -> type[LLMClient]:
    from llm.client import LLMClient  # noqa: PLC0415 - the registry is listed by --help, which needs no client

    if not (isinstance(found, type) and issubclass(found, LLMClient)):
        msg = f"{what} is not a subclass of llm.LLMClient"
        raise ConfigurationError(msg)
    return found
