"""Prices: list prices as the list itself computes them, the owner's own, none at home, and unknown ones."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import pytest

from llm import ConfigurationError, LLMConfig
from llm.backends.place import OLLAMA_CLOUD, work_place
from llm.pricing import PriceList, parse_prices

OPENAI = "https://api.openai.com/v1"
LISTED = [
    ("gpt-4o", OPENAI),
    ("text-embedding-3-small", OPENAI),
    ("claude-sonnet-4-5", "https://api.anthropic.com/v1"),
    ("gemini-2.5-pro", None),
]


@pytest.mark.parametrize(("model", "url"), LISTED)
@pytest.mark.parametrize("tokens", [(1000, 100, 0), (1000, 100, 800), (300_000, 900, 1000), (1, 1, 0)])
def test_a_listed_price_is_the_one_that_the_list_computes(
    model: str, url: str | None, tokens: tuple[int, int, int]
) -> None:
    genai_prices = pytest.importorskip("genai_prices")
    tokens_in, tokens_out, cached = tokens
    usage = genai_prices.Usage(
        input_tokens=tokens_in,
        output_tokens=0 if "embedding" in model else tokens_out,
        cache_read_tokens=0 if "embedding" in model else cached,
    )
    listed = genai_prices.calc_price(usage, model, provider_api_url=url).total_price
    cost, source = PriceList(free=False, url=url).price(
        model, tokens_in=tokens_in, tokens_out=tokens_out, cached=cached
    )
    assert cost is not None
    assert abs(cost - listed) <= Decimal("0.0000005")  # half a millionth
    assert source.startswith("genai-prices ")


def test_a_model_or_a_vendor_that_nobody_lists_has_no_price() -> None:
    for model, url in (("nothing-like-it", OPENAI), ("gpt-4o", "https://gateway.example/v1")):
        prices = PriceList(free=False, url=url)
        assert prices.price(model, tokens_in=10, tokens_out=10) == (None, "unknown")
        assert prices.is_settled(model)
        assert prices.at_hand(model) is None


def test_the_owners_own_prices_come_first_and_cached_tokens_have_theirs() -> None:
    named = parse_prices("gpt-4o = 2 / 10 / 1, qwen2.5:1.5b=0.5/0.5")
    prices = PriceList(free=True, named=named)
    assert prices.price("gpt-4o", tokens_in=1_000_000, tokens_out=100_000, cached=400_000)[0] == Decimal(
        "2.6"
    )
    assert prices.price("qwen2.5:1.5b", tokens_in=1_000_000, tokens_out=0, cached=1_000_000)[0] == Decimal(
        "0.5"
    )
    assert prices.price("other", tokens_in=1_000_000, tokens_out=1_000_000)[0] == 0


@pytest.mark.parametrize(
    "text", ["gpt-4o", "gpt-4o=2.5", "=1/2", "gpt-4o=1/2/3/4", "gpt-4o=-1/2", "a=1/2 b=1/2/x"]
)
def test_what_is_no_price_stops_the_configuration(text: str) -> None:
    with pytest.raises(ConfigurationError, match="LLM_PRICES"):
        LLMConfig(prices=text)


@pytest.mark.parametrize(
    ("config", "free"),
    [
        ({"backend": "llamacpp"}, True),
        ({"backend": "mock"}, True),
        ({"backend": "ollama", "api_base": "http://192.168.1.7:11434"}, True),
        ({"backend": "ollama", "api_base": "https://ollama.com"}, False),
        ({"backend": "remote"}, False),
        ({"backend": "remote", "api_base": "http://127.0.0.1:8080/v1"}, True),
        ({"backend": "remote", "api_base": "https://openrouter.ai/api/v1"}, False),
        ({"backend": "of-a-plugin"}, False),
    ],
)
def test_only_hardware_of_ones_own_is_free(config: dict[str, str], free: bool) -> None:
    place = work_place(LLMConfig(**config, api_key="k"))  # type: ignore[arg-type]
    assert place.own is free


def test_a_cloud_model_behind_a_local_ollama_is_not_free() -> None:
    prices = PriceList(free=True, but_not=OLLAMA_CLOUD)
    assert prices.price("gpt-oss:120b-cloud", tokens_in=1, tokens_out=1)[0] is None
    assert prices.is_free("qwen2.5:1.5b")
    assert not prices.is_free("deepseek-v3.1:671b-cloud")


def test_the_list_is_not_loaded_before_the_price_of_a_vendors_model_is_asked_for() -> None:
    script = (
        "import sys; from llm.pricing import PriceList\n"
        "PriceList(free=True).price('m', tokens_in=1, tokens_out=1)\n"
        "vendor = PriceList(free=False, named={})\n"
        "vendor.at_hand('gpt-4o'); vendor.is_settled('gpt-4o')\n"
        "print('genai_prices' in sys.modules, 'pydantic' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_without_the_list_a_price_is_unknown_and_not_nothing() -> None:
    script = (
        "import sys; sys.modules['genai_prices'] = None\n"
        "from llm.pricing import PriceList\n"
        "print(PriceList(free=False).price('gpt-4o', tokens_in=1, tokens_out=1))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(None, 'unknown')"
