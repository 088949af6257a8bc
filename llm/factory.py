"""get_llm_client(): configuration in, backend with its wrappers out.

The order of the wrappers, outermost first:

    caller -> total deadline -> cache -> observe -> backend

A hit costs nothing; only what reaches a backend is counted as a call.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm.client import LLMClient
from llm.config import LLMConfig
from llm.events import Observer
from llm.middleware.base import Middleware
from llm.registry import backend_class


def get_llm_client(config: LLMConfig | None = None, *, observers: Sequence[Observer] = ()) -> LLMClient:
    """Make the client that `config` asks for; nothing is connected or loaded before the first call.

    Args:
        config: how to reach the model; the environment (`LLM_*`) if None.
        observers: called with every event of `llm.events`.

    Raises:
        ConfigurationError: the configuration cannot work. An unknown backend is no error: it warns and
            gives the mock backend.
    """
    chosen = LLMConfig.from_env() if config is None else config
    backend = backend_class(chosen.backend)
    return backend(chosen, middleware=_middleware(chosen), observers=observers)


def _middleware(config: LLMConfig) -> list[Middleware]:
    if not config.enable_cache:
        return []
    from llm.middleware.cache import ResponseCache  # noqa: PLC0415 - sqlite3 is loaded only where it is used
    from llm.stores.sqlite import SqliteResponseStore  # noqa: PLC0415

    # What shapes an answer and is in no request; the backend's name comes from the backend itself.
    namespace = {"api_base": config.api_base, "context_length": config.context_length}
    return [ResponseCache(SqliteResponseStore(config.cache_dir), namespace=namespace)]
