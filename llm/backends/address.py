"""Where a server is: URLs from settings, taken apart so that credentials in them are never shown."""

from __future__ import annotations

import base64
import ipaddress
import logging
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit

from llm.errors import ConfigurationError

_HOME_SUFFIXES = (".local", ".lan", ".home", ".internal", ".home.arpa")
_TAILSCALE = ipaddress.ip_network("100.64.0.0/10")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """A server's base URL in parts.

    Attributes:
        scheme: "http" or "https".
        host: lower-case name or IP address, IPv6 without brackets.
        port: None means the scheme's own.
        path: without a slash at its end; empty for none.
        username: from user:password@ in the URL, decoded.
        password: the same; never shown.
    """

    scheme: str
    host: str
    port: int | None = None
    path: str = ""
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def origin(self) -> str:
        """Scheme, host and port: what may be shown and logged."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port is None else f":{self.port}")

    @property
    def host_and_port(self) -> str:
        """Host and port, the scheme's own if none is named; what traces call the server's address."""
        return f"{self.host}:{self.port or (443 if self.scheme == 'https' else 80)}"

    @property
    def url(self) -> str:
        """The URL without its credentials, to be sent to and shown."""
        return self.origin + self.path

    def full_url(self, path: str) -> str:
        """The URL of `path` below this one, with its credentials, for sending only."""
        if not self.secret:
            return self.url + path
        credentials = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@"
        return self.url.replace("://", f"://{credentials}", 1) + path

    @property
    def secret(self) -> str:
        """The part of the URL that no message may show: the password, or a token standing alone."""
        return self.password or self.username

    @property
    def basic_authorization(self) -> str | None:
        """The credentials of the URL as an Authorization header, None without any."""
        if not self.username and not self.password:
            return None
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine."""
        return _is_loopback(self.host)

    @property
    def is_private(self) -> bool:
        """Whether it is this machine or in a home or company network."""
        ip = _ip(self.host)
        if ip is not None:
            return ip.is_private or ip.is_link_local or ip in _TAILSCALE
        # A digit first may be an IP address in disguise (134744072 is 8.8.8.8).
        single = "." not in self.host and not self.host[0].isdigit()
        return self.is_loopback or single or self.host.endswith(_HOME_SUFFIXES)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


@lru_cache(maxsize=64)  # each call wants to know
def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    ip = _ip(host)
    return ip is not None and (ip.is_loopback or ip.is_unspecified)


@lru_cache(maxsize=64)  # each call takes its URL apart, and a backend has two or three
def parse_address(text: str, setting: str = "LLM_API_BASE") -> Address:
    """Take a base URL apart.

    Args:
        text: the URL, perhaps with user:password@ in it.
        setting: the variable that it comes from, named in errors.

    Raises:
        ConfigurationError: it is no http(s) URL with a host, or has a query or fragment. The text is not
            repeated: it may hold a password.
    """
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
        usable = parts.scheme in {"http", "https"} and host and not _has_blanks(text.strip())
    except ValueError:
        usable = host = port = None
    if not usable or not host:
        msg = f"{setting} must be a URL like http://127.0.0.1:11434: scheme, host, port from 1 to 65535"
        raise ConfigurationError(msg)
    if parts.query or parts.fragment:
        msg = f"{setting} must end with a path, without ? or #; a key belongs in LLM_API_KEY"
        raise ConfigurationError(msg)
    return Address(
        scheme=parts.scheme,
        host=host,
        port=port,
        path=parts.path.rstrip("/"),
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def _has_blanks(text: str) -> bool:
    return any(c.isspace() or not c.isprintable() for c in text)


def guard_clear_text(address: Address, *, key: str | None, backend: str) -> None:
    """Keep a key off the open internet: over plain http it goes only to this machine or a private network.

    A private network is allowed with a warning, since a home server seldom has a certificate. Without a
    key, only prompts in clear text on the open internet are warned of.

    Raises:
        ConfigurationError: a key or password would go to a public host in clear text.
    """
    if address.scheme == "https" or address.is_loopback:
        return
    secret = bool(key or address.secret)
    if secret and not address.is_private:
        msg = (
            f"LLM_API_KEY would travel in clear text to {address.origin}; set LLM_API_BASE to an https:// "
            "address, or leave LLM_API_KEY out if the server needs none"
        )
        raise ConfigurationError(msg)
    if secret or not address.is_private:
        what = "its key and prompts" if secret else "prompts"
        text = "the %s backend sends %s in clear text to %s; use https:// if others share that network"
        _log.warning(text, backend, what, address.origin)
