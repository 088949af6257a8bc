"""get_llm_client(): configuration in, backend with its wrappers out.

The order of the wrappers, outermost first:

    caller -> total deadline -> cache -> coalesce -> budget -> observe -> backend

A hit costs nothing; only what reaches a backend is counted as a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from llm.client import LLMClient
from llm.config import LLMConfig
from llm.events import Observer
from llm.middleware.base import Middleware
from llm.registry import backend_class

if TYPE_CHECKING:
    from llm.budgets import Budget
    from llm.middleware.cache import ResponseCache
    from llm.middleware.coalesce import Coalesce
    from llm.stores.base import ResponseStore

IN_THE_REQUEST = frozenset({"model", "temperature", "max_tokens", "top_p", "seed", "think"})
"""Settings that each request carries; the cache's key takes them from there."""

SHAPES_NOTHING = frozenset(
    {
        *("backend", "api_key", "timeout", "enable_cache", "max_reply_bytes", "embed_model", "idle_seconds"),
        *(
            "cache_dir",
            "cache_mode",
            "cache_max_age",
            "cache_max_bytes",
            "keep_alive",
            "retries",
            "usage_file",
        ),
        *("max_concurrency", "requests_per_minute", "tokens_per_minute", "budget", "prices"),
    }
)
"""Settings that shape no answer. All others are part of every key of the cache, a new one by itself."""


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
    gate, books = _spending(chosen)
    if not chosen.enable_cache:
        return backend(chosen, middleware=gate, observers=[*books, *observers])
    cache, coalesce = _caching(chosen)
    client = backend(chosen, middleware=[cache, coalesce, *gate], observers=[*books, *observers])
    if backend.fingerprint is not LLMClient.fingerprint:
        cache.ask_for_fingerprints(client.fingerprint)
    return client


def get_response_store(config: LLMConfig | None = None) -> ResponseStore:
    """The replies that clients of this configuration keep: to count, list, export and clear them.

    A folder or file that is not there is not made.

    Args:
        config: names the folder; the environment (`LLM_*`) if None.
    """
    from llm.stores.sqlite import SqliteResponseStore  # noqa: PLC0415 - sqlite3 is loaded only where it is used

    chosen = LLMConfig.from_env() if config is None else config
    return SqliteResponseStore(chosen.cache_dir, max_bytes=chosen.cache_max_bytes, create=False)


def _caching(config: LLMConfig) -> tuple[ResponseCache, Coalesce]:
    from llm.middleware.cache import ResponseCache  # noqa: PLC0415 - sqlite3 is loaded only where it is used
    from llm.middleware.coalesce import Coalesce  # noqa: PLC0415
    from llm.stores.sqlite import SqliteResponseStore  # noqa: PLC0415

    # What shapes an answer and is in no request; the backend's name comes from the backend itself.
    left_out = IN_THE_REQUEST | SHAPES_NOTHING
    namespace = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in left_out}
    store = SqliteResponseStore(config.cache_dir, max_bytes=config.cache_max_bytes)
    return ResponseCache(store, namespace=namespace), Coalesce()


def _spending(
    config: LLMConfig, *, name: str = "", total: Sequence[Budget] = ()
) -> tuple[list[Middleware], list[Observer]]:
    """The budget gate and the ledger's observer of one backend; nothing when neither is configured.

    Args:
        config: how that backend is reached.
        name: its name where there are several; its own budget is then in its own scope, else in total.
        total: the budgets that all backends of the program share.
    """
    if not (config.budget or config.usage_file or total):
        return [], []
    from llm.budgets import parse_budgets  # noqa: PLC0415 - only where spending is counted

    own = parse_budgets(config.budget, backend=name) if config.budget else ()
    budgets = tuple(dict.fromkeys((*total, *own)))
    from llm.backends.place import OLLAMA_CLOUD, work_place  # noqa: PLC0415 - only where spending is counted
    from llm.middleware.bookkeeper import Bookkeeper  # noqa: PLC0415 - sqlite3 is loaded only where it is used
    from llm.pricing import PriceList, parse_prices  # noqa: PLC0415

    place = work_place(config)
    prices = PriceList(
        free=place.own, but_not=OLLAMA_CLOUD, url=place.url, named=parse_prices(config.prices or "")
    )
    keeper = Bookkeeper.of(config.usage_file)
    return keeper.gate(budgets, prices, timeout=config.timeout), [keeper.observer(prices, here=place.here)]
