"""Where servers are: addresses taken apart, and keys kept off the open internet."""

from __future__ import annotations

import logging

import pytest

from llm.backends.address import Address, guard_clear_text, parse_address
from llm.backends.ollama import ollama_address
from llm.config import LLMConfig
from llm.errors import ConfigurationError

PASSWORD = "p%40ss-0123456789"


def test_an_address_is_shown_without_its_credentials_and_sent_with_them() -> None:
    address = parse_address(f"https://bob:{PASSWORD}@Box.Example:8443/v1/")
    assert address.origin == "https://box.example:8443"
    assert address.url == "https://box.example:8443/v1"
    assert address.full_url("/models") == f"https://bob:{PASSWORD}@box.example:8443/v1/models"
    assert (address.username, address.password) == ("bob", "p@ss-0123456789")
    assert "p@ss" not in repr(address)
    assert parse_address(address.full_url("")) == address


def test_a_token_alone_in_front_of_the_host_is_a_secret_too() -> None:
    assert parse_address("https://token-0123456789@box.example").secret == "token-0123456789"


def test_an_ipv6_address_keeps_its_brackets() -> None:
    assert parse_address("http://[::1]:11434").url == "http://[::1]:11434"


@pytest.mark.parametrize(
    "text",
    [
        "box.example",
        "ftp://box.example",
        "http://",
        "http://:80",
        "http://box:99999",
        "http://box:port",
        "http://[::1",
        "http://box example",
        "http://box\n.example",
        f"http://bob:{PASSWORD}@:80",
    ],
)
def test_what_is_no_address_is_named_by_its_setting_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError, match="LLM_API_BASE") as caught:
        parse_address(text)
    assert PASSWORD not in str(caught.value)
    assert "box" not in str(caught.value)


@pytest.mark.parametrize("text", ["https://box.example/v1?key=secret", "https://box.example/#x"])
def test_a_query_is_refused_since_keys_hide_there(text: str) -> None:
    with pytest.raises(ConfigurationError, match="LLM_API_KEY") as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback", "private"),
    [
        ("localhost", True, True),
        ("api.localhost", True, True),
        ("127.0.0.1", True, True),
        ("[::1]", True, True),
        ("0.0.0.0", True, True),
        ("192.168.1.20", False, True),
        ("10.0.0.5", False, True),
        ("100.101.102.103", False, True),
        ("169.254.1.1", False, True),
        ("[fd00::1]", False, True),
        ("nas", False, True),
        ("pi.local", False, True),
        ("ollama.home.arpa", False, True),
        ("8.8.8.8", False, False),
        ("134744072", False, False),
        ("[2606:4700::1]", False, False),
        ("api.openai.com", False, False),
        ("localhost.evil.example", False, False),
    ],
)
def test_this_machine_and_home_networks_are_known(host: str, *, loopback: bool, private: bool) -> None:
    address = parse_address(f"http://{host}:80")
    assert (address.is_loopback, address.is_private) == (loopback, private)


@pytest.mark.parametrize("base", ["http://api.example.com/v1", "http://8.8.8.8", "http://134744072"])
def test_a_key_is_never_sent_in_clear_text_over_the_internet(base: str) -> None:
    with pytest.raises(ConfigurationError, match="https://") as caught:
        guard_clear_text(parse_address(base), key="sk-0123456789", backend="remote")
    assert "sk-" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        guard_clear_text(parse_address(base.replace("http://", "http://a:b@")), key=None, backend="remote")


@pytest.mark.parametrize(
    ("base", "key", "warnings"),
    [
        ("http://192.168.1.20:8000", "sk-0123456789", 1),
        ("http://192.168.1.20:8000", None, 0),
        ("http://api.example.com", None, 1),
        ("http://127.0.0.1:8000", "sk-0123456789", 0),
        ("https://api.example.com", "sk-0123456789", 0),
    ],
)
def test_clear_text_is_warned_of_where_others_may_listen(
    base: str, key: str | None, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    guard_clear_text(parse_address(base), key=key, backend="remote")
    assert len(caplog.records) == warnings
    assert "sk-" not in caplog.text


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("box", "http://box:11434"),
        ("box:8080", "http://box:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("[::]:8080", "http://[::1]:8080"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("http://box", "http://box"),
        ("https://box/", "https://box"),
        ("https://box:444/ollama", "https://box:444/ollama"),
        ('"box:8080"', "http://box:8080"),
        ("  box  ", "http://box:11434"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(host: str, url: str) -> None:
    assert ollama_address(LLMConfig(), {"OLLAMA_HOST": host}).url == url


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://box:11434", "http://box:11434"),
        ("http://box:11434/", "http://box:11434"),
        ("http://box:11434/v1", "http://box:11434"),
        ("http://box:11434/api/", "http://box:11434"),
        ("https://box/ollama/api", "https://box/ollama"),
        ("http://0.0.0.0:11434", "http://127.0.0.1:11434"),
    ],
)
def test_the_configured_base_wins_and_may_end_in_the_api(base: str, url: str) -> None:
    assert ollama_address(LLMConfig(api_base=base), {"OLLAMA_HOST": "elsewhere"}).url == url


def test_a_wrong_ollama_host_is_named() -> None:
    with pytest.raises(ConfigurationError, match="OLLAMA_HOST"):
        ollama_address(LLMConfig(), {"OLLAMA_HOST": "box:port"})


def test_an_address_without_an_environment_is_ollamas_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST")
    assert ollama_address(LLMConfig()) == Address("http", "127.0.0.1", 11434)
