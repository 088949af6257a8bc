"""get_llm_client(): configuration in, backend with its wrappers out.

The order of the wrappers, outermost first:

    caller -> total deadline -> cache -> budget -> observe -> backend

A hit costs nothing; only what reaches a backend is counted as a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm.client import LLMClient
from llm.config import LLMConfig
from llm.events import Observer
from llm.middleware.base import Middleware
from llm.registry import backend_class

if TYPE_CHECKING:
    from llm.budgets import Budget


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
    middleware = _middleware(chosen)
    gate, books = _spending(chosen)
    return backend(chosen, middleware=[*middleware, *gate], observers=[*books, *observers])


def _middleware(config: LLMConfig) -> list[Middleware]:
    if not config.enable_cache:
        return []
    from llm.middleware.cache import ResponseCache  # noqa: PLC0415 - sqlite3 is loaded only where it is used
    from llm.stores.sqlite import SqliteResponseStore  # noqa: PLC0415

    # What shapes an answer and is in no request; the backend's name comes from the backend itself.
    namespace = {"api_base": config.api_base, "context_length": config.context_length}
    return [ResponseCache(SqliteResponseStore(config.cache_dir), namespace=namespace)]


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
