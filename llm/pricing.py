"""What a call costs: 0 on hardware of one's own, a vendor's list price, the owner's own word, or unknown.

The list prices are those of genai-prices (MIT, github.com/pydantic/genai-prices), which carries the prices of
about 30 vendors inside the package, so no network is asked; the extra `prices` installs it. It is loaded only
when the price of a remote model is wanted, in a thread: 0.2 s of CPU and some 20 MB. Without it, and for
models that it does not know, a price is unknown, which is never taken for 0; `LLM_PRICES` can name it.

What a list price leaves out: batch and priority tiers, discounts, taxes, and the surcharge of Anthropic's
that is paid for writing into its prompt cache. Tokens that were read from a vendor's cache cost its price for
those; tokens of thinking are output.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from importlib import metadata
from types import MappingProxyType
from typing import Any

from llm.errors import ConfigurationError

FORMS = 'prices in USD per million tokens such as "gpt-4o=2.5/10/1.25, my-model=0.1/0.4": in/out/cached'
"""What `parse_prices` reads, for messages."""

EXTRA = "pip install 'askfirst[prices]'"

_LOOKED_UP_FOR = 3600.0  # seconds; list prices begin and end at dates, some at times of day
_AMOUNT = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_PRICE = re.compile(rf"(?P<model>\S.*?)\s*=\s*(?P<rates>{_AMOUNT}(?:\s*/\s*{_AMOUNT}){{1,2}})")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """What tokens cost from a length of the prompt on; it holds for all tokens of such a call.

    Attributes:
        start: tokens in, from which on these prices hold; 0 for the usual ones.
        input: USD for a million tokens in.
        output: USD for a million tokens out.
        cached: USD for a million tokens in that the vendor had in its cache.
    """

    start: int = 0
    input: Decimal
    output: Decimal
    cached: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The prices of one model, and who says so.

    Attributes:
        tiers: the usual prices first, those of longer prompts after them.
        request: USD for each call, whatever its length.
        source: "own hardware", "llm.prices", or the name and version of the price list.
        day: the day whose prices they are, ISO 8601.
        is_free: whether all of them are 0.
    """

    tiers: tuple[Tier, ...]
    request: Decimal = Decimal(0)
    source: str
    day: str
    is_free: bool = field(init=False)

    def __post_init__(self) -> None:
        amounts = [amount for tier in self.tiers for amount in (tier.input, tier.output, tier.cached)]
        object.__setattr__(self, "is_free", not any((*amounts, self.request)))

    def micros(self, tokens_in: int, tokens_out: int, cached: int = 0) -> int:
        """Millionths of a USD for one call, rounded; USD per million tokens is just that per token."""
        if self.is_free:
            return 0
        tier = self.tiers[0]
        for longer in self.tiers[1:]:
            if tokens_in > longer.start:
                tier = longer
        fresh = max(0, tokens_in - cached)
        cost = fresh * tier.input + min(cached, tokens_in) * tier.cached + tokens_out * tier.output
        return int((cost + self.request * 1_000_000).quantize(Decimal(1), ROUND_HALF_UP))


def flat(input: Decimal, output: Decimal, cached: Decimal | None = None, *, source: str) -> Rates:  # noqa: A002 - the word for it
    """Prices that are the same for every length of prompt; cached tokens cost as much as others if unsaid."""
    tier = Tier(input=input, output=output, cached=input if cached is None else cached)
    return Rates(tiers=(tier,), source=source, day=_today())


def parse_prices(text: str) -> dict[str, Rates]:
    """Read the owner's own prices, separated by commas, by model.

    Raises:
        ConfigurationError: it cannot be read; the message repeats the part that is wrong.
    """
    found: dict[str, Rates] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = _PRICE.fullmatch(part)
        if match is None:
            msg = f"LLM_PRICES (prices) must be {FORMS}; {part!r} is none"
            raise ConfigurationError(msg)
        found[match["model"]] = flat(*map(Decimal, match["rates"].split("/")), source="llm.prices")
    return found


class PriceList:
    """The prices of the models of one backend.

    Args:
        free: whether they work on hardware of one's own, which costs nothing per call.
        but_not: how names of models end that do not work there.
        url: the vendor's base URL, by which its list is found; None finds it by the model's name.
        named: prices that the owner named, by model; they come first, on hardware of one's own too.
    """

    def __init__(
        self,
        *,
        free: bool,
        but_not: tuple[str, ...] = (),
        url: str | None = None,
        named: Mapping[str, Rates] = MappingProxyType({}),
    ) -> None:
        self._nothing = flat(Decimal(0), Decimal(0), source="own hardware") if free else None
        self._but_not = but_not
        self._url = url
        self._named = named
        self._listed: dict[str, tuple[float, Rates | None]] = {}

    def at_hand(self, model: str) -> Rates | None:
        """The price of `model` as far as it is known without a look into the list; None is no verdict."""
        if model in self._named:
            return self._named[model]
        if self._nothing is not None:
            return None if model.endswith(self._but_not) else self._nothing
        return self._listed[model][1] if model in self._listed else None

    def is_settled(self, model: str) -> bool:
        """Whether `at_hand` is the last word: `look_up` would find nothing else."""
        if self._nothing is not None or model in self._named:
            return True
        looked_up, _ = self._listed.get(model, (-_LOOKED_UP_FOR, None))
        return time.monotonic() - looked_up < _LOOKED_UP_FOR

    def is_free(self, model: str) -> bool:
        """Whether a call costs nothing, whatever becomes of it."""
        return self.at_hand(model) is self._nothing is not None

    def look_up(self, model: str) -> Rates | None:
        """The price of `model`, None when nobody knows it. Takes a moment the first time: in a thread."""
        if not self.is_settled(model):
            self._listed[model] = (time.monotonic(), _listed(model, self._url))
        return self.at_hand(model)

    def price(
        self, model: str, *, tokens_in: int, tokens_out: int, cached: int = 0
    ) -> tuple[Decimal | None, str]:
        """What one call costs in USD, None when nobody knows, and who says so on which day's prices."""
        rates = self.look_up(model)
        if rates is None:
            return None, "unknown"
        cost = Decimal(rates.micros(tokens_in, tokens_out, cached)) / 1_000_000
        return cost, f"{rates.source}, prices of {rates.day}"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


_loading = threading.Lock()
_said: set[str] = set()


def _listed(model: str, url: str | None) -> Rates | None:
    """The vendor's list price, None when the list is not installed or does not hold the model."""
    with _loading:
        try:
            from genai_prices import data_snapshot  # noqa: PLC0415 - 0.2 s of CPU, and an extra
        except Exception:  # noqa: BLE001 - not installed, or broken: no call fails for a price
            _say_once(f"prices of remote models are unknown; for those of the vendors: {EXTRA}")
            return None
        try:
            now = datetime.now(UTC)
            _, found = data_snapshot.get_snapshot().find_provider_model(model, None, None, url)
            return _as_rates(found.get_prices(now), now.date().isoformat())
        except LookupError:
            return None
        except Exception:  # noqa: BLE001 - another version may look different; no call fails for it
            _log.warning("the price of %s cannot be read from genai-prices", model, exc_info=True)
            return None


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        _log.info(text)


def _as_rates(prices: Any, day: str) -> Rates | None:
    """A price of genai-prices as ours; None when it has none for text."""
    named = {name: getattr(prices, f"{name}_mtok", None) for name in ("input", "output", "cache_read")}
    if named["input"] is None:
        return None
    starts = sorted({0, *(tier.start for price in named.values() for tier in getattr(price, "tiers", ()))})
    tiers = []
    for start in starts:
        paid = _at(named["input"], start)
        cached = paid if named["cache_read"] is None else _at(named["cache_read"], start)
        output = (
            Decimal(0) if named["output"] is None else _at(named["output"], start)
        )  # embeddings have none
        tiers.append(Tier(start=start, input=paid, output=output, cached=cached))
    per_thousand = getattr(prices, "requests_kcount", None)
    request = Decimal(0) if per_thousand is None else _at(per_thousand, 0) / 1000
    source = f"genai-prices {metadata.version('genai-prices')}"
    return Rates(tiers=tuple(tiers), request=request, source=source, day=day)


def _at(price: Any, start: int) -> Decimal:
    """The price that holds for prompts just longer than `start` tokens."""
    paid = getattr(price, "base", price)
    for tier in getattr(price, "tiers", ()):
        if tier.start <= start:
            paid = tier.price
    return Decimal(str(paid))
