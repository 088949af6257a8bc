"""get_llm_client(): configuration in, backend with its wrappers out.

The order of the wrappers, outermost first:

    caller -> total deadline -> [router -> per backend:]
    cache -> coalesce -> budget -> breaker -> retry -> limit -> observe -> backend

- A hit of the cache costs nothing, and no time, place or budget.
- The budget stands before the breaker: what is not paid for is not asked, and says nothing about a backend.
- The breaker stands before the retries. It counts calls and not attempts, so that a hiccup which a retry
  cures is no failure; while it is open a call is refused before it waits for anything; and the one call that
  tries whether the backend is back may be retried like any other. The other way round, one call would use up
  three of its five failures, and go on asking a backend that it has just given up.
- Each attempt waits for its turn anew, and holds no place while it waits for the next one.
- Only what reaches a backend is counted as a call.
- A router stands outside of all this: every backend has a cache, a breaker and limits of its own, so that no
  fallback's answer is kept as another's, and its own budget lets it be asked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from llm.client import LLMClient
from llm.config import LLMConfig
from llm.events import CallEvent, Observer
from llm.middleware.base import Middleware
from llm.middleware.breaker import PATIENCE, Breaker
from llm.middleware.limit import Limit
from llm.middleware.retry import Retry
from llm.registry import backend_class

if TYPE_CHECKING:
    from llm.budgets import Budget
    from llm.middleware.cache import ResponseCache
    from llm.middleware.coalesce import Coalesce
    from llm.routes import Routes
    from llm.stores.base import ResponseStore

PARALLEL_VARIABLE = "OLLAMA_NUM_PARALLEL"
"""How many calls an Ollama works on at a time; 1 unless it is set."""

REMOTE_CONCURRENCY = 8
"""Calls under way at a time that every service allows; a higher limit is the owner's to set."""


IN_THE_REQUEST = frozenset({"model", "temperature", "max_tokens", "top_p", "seed", "think"})
"""Settings that each request carries; the cache's key takes them from there."""

SHAPES_NOTHING = frozenset(
    {
        *("backend", "api_key", "timeout", "enable_cache", "max_reply_bytes", "embed_model", "idle_seconds"),
        *("cache_dir", "cache_mode", "cache_max_age", "cache_max_bytes", "keep_alive", "retries"),
        *("max_concurrency", "requests_per_minute", "tokens_per_minute", "budget", "prices", "usage_file"),
    }
)
"""Settings that shape no answer. All others are part of every key of the cache, a new one by itself."""


def get_llm_client(
    config: LLMConfig | Routes | None = None, *, observers: Sequence[Observer] = ()
) -> LLMClient:
    """Make the client that `config` asks for; nothing is connected or loaded before the first call.

    Args:
        config: how to reach the model; `Routes` for several of them in one client; the environment
            (`LLM_*`) if None.
        observers: called with every event of `llm.events`.

    Raises:
        ConfigurationError: the configuration cannot work. An unknown backend is no error: it warns and
            gives the mock backend.
    """
    if config is None:
        return _client(LLMConfig.from_env(), observers)
    if isinstance(config, LLMConfig):
        return _client(config, observers)
    from llm.router import routed  # noqa: PLC0415 - most programs have one backend

    if config.budget:
        from llm.budgets import parse_budgets  # noqa: PLC0415 - only where spending is counted

        total = parse_budgets(config.budget)
    else:
        total = ()
    return routed(config, lambda name, each: _client(each, observers, name=name, total=total), observers)


def _client(
    config: LLMConfig, observers: Sequence[Observer], *, name: str = "", total: Sequence[Budget] = ()
) -> LLMClient:
    """One backend with its wrappers; for `name` and `total` see `_spending`."""
    gate, books = _spending(config, name=name, total=total)
    caching = _caching(config) if config.enable_cache else ()
    rest = [*gate, *_breaker(config), *_retry(config), *_limit(config)]
    backend = backend_class(config.backend)
    client = backend(config, middleware=[*caching, *rest], observers=[*books, *observers])
    if caching and backend.fingerprint is not LLMClient.fingerprint:
        caching[0].ask_for_fingerprints(client.fingerprint)
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
    gate = keeper.gate(budgets, prices, timeout=config.timeout)

    def tell(event: CallEvent, /) -> None:
        gate[0].emit(event)  # whom that reaches is settled when the client is made

    return gate, [keeper.observer(prices, here=place.here, tell=tell)]


def _breaker(config: LLMConfig) -> list[Middleware]:
    return [Breaker(patience=min(PATIENCE, config.timeout / 2))]


def _retry(config: LLMConfig) -> list[Middleware]:
    return [Retry(config.retries)] if config.retries else []


def _limit(config: LLMConfig) -> list[Middleware]:
    concurrency = config.max_concurrency or _usual_concurrency(config.backend)
    if not (concurrency or config.requests_per_minute or config.tokens_per_minute):
        return []
    return [
        Limit(
            concurrency=concurrency,
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
        )
    ]


def _usual_concurrency(backend: str) -> int | None:
    """What suits a backend when nobody said; the embedded engines keep queues of their own."""
    if backend == "ollama":
        text = os.environ.get(PARALLEL_VARIABLE, "").strip()
        return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else 1
    return REMOTE_CONCURRENCY if backend == "remote" else None
