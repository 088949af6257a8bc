"""What the service may do beyond its own folder and this machine: said by a person, kept in a drop-in."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Self, TypeVar

from daemon.errors import DaemonError

T = TypeVar("T")

_GIVEN = "# Given with: "
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MEMORY = re.compile(r"[1-9][0-9]*[KMGT]?|infinity")
_HOMES = ("/home", "/root", "/run/user")


class WrongGrant(DaemonError):
    """A grant that cannot be given; the message says what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """What the service may do.

    Attributes:
        paths: folders and files that it may write.
        devices: device files that it may use.
        addresses: IP addresses or networks that it may talk to, besides this machine.
        network: whether it may talk to any address.
        credentials: name of each credential and the file that holds it.
        memory: instead of the unit's MemoryMax.
    """

    paths: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    network: bool = False
    credentials: tuple[tuple[str, str], ...] = ()
    memory: str | None = None

    def __bool__(self) -> bool:
        return self != Grants()

    @classmethod
    def of(
        cls,
        *,
        paths: tuple[str, ...] = (),
        devices: tuple[str, ...] = (),
        addresses: tuple[str, ...] = (),
        network: bool = False,
        credentials: tuple[str, ...] = (),
        memory: str | None = None,
    ) -> Self:
        """Grants as they are typed, checked.

        Raises:
            WrongGrant: one of them cannot be given.
        """
        return cls(
            paths=_once(_absolute(path, "--allow-path") for path in paths),
            devices=_once(_device(path) for path in devices),
            addresses=_once(_address(text) for text in addresses),
            network=network,
            credentials=_once(_credential(text) for text in credentials),
            memory=None if memory is None else _memory(memory),
        )

    def joined(self, more: Grants) -> Grants:
        """These and `more`; where only one can hold, that of `more`."""
        newer = dict(more.credentials)
        kept = tuple((name, newer.pop(name, file)) for name, file in self.credentials)
        return replace(
            self,
            paths=_once((*self.paths, *more.paths)),
            devices=_once((*self.devices, *more.devices)),
            addresses=_once((*self.addresses, *more.addresses)),
            network=self.network or more.network,
            credentials=(*kept, *newer.items()),
            memory=more.memory or self.memory,
        )

    def words(self) -> list[str]:
        """The options that give them."""
        words = [word for path in self.paths for word in ("--allow-path", path)]
        words += [word for path in self.devices for word in ("--allow-device", path)]
        words += [word for text in self.addresses for word in ("--allow-address", text)]
        words += ["--allow-network"] if self.network else []
        words += [word for name, file in self.credentials for word in ("--credential", f"{name}={file}")]
        return [*words, *(["--memory", self.memory] if self.memory else [])]

    def drop_in(self, *, sandboxed: bool = True) -> str:
        """The drop-in that gives them.

        Args:
            sandboxed: whether the unit closes files, devices and network at all, which a user's does not.
        """
        lines = [*(self._sandbox() if sandboxed else ())]
        lines += [f"LoadCredential={name}:{file}" for name, file in self.credentials]
        lines += [f"MemoryMax={self.memory}"] if self.memory else []
        body = "".join(f"{line}\n" for line in lines)
        return f"{_GIVEN}{shlex.join(self.words())}\n\n[Service]\n{body}"

    def _sandbox(self) -> Iterator[str]:
        homes = [path for path in self.paths if _is_in_a_home(path)]
        if homes:  # an empty folder in the place of all homes, and in it the ones that were named
            yield "ProtectHome=tmpfs"
        for path in self.paths:  # the minus: a disk that is missing one day is no reason not to start
            yield f"{'BindPaths' if path in homes else 'ReadWritePaths'}={quoted(f'-{path}')}"
            yield f"NoExecPaths={quoted(f'-{path}')}"
        if self.devices:
            yield "PrivateDevices=no"
        for path in self.devices:
            yield f"DeviceAllow={quoted(path)} rw"
        if self.network:
            yield "IPAddressDeny="
        for text in self.addresses:
            yield f"IPAddressAllow={text}"


def given(drop_in: str) -> Grants:
    """The grants that a drop-in of ours gives; none when it says nothing that can be read."""
    for line in drop_in.splitlines():
        if line.startswith(_GIVEN):
            try:
                return _parsed(shlex.split(line.removeprefix(_GIVEN)))
            except (ValueError, WrongGrant):
                return Grants()
    return Grants()


def _parsed(words: list[str]) -> Grants:
    names = {
        "--allow-path": "paths",
        "--allow-device": "devices",
        "--allow-address": "addresses",
        "--credential": "credentials",
    }
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    network, memory, rest = False, None, iter(words)
    for word in rest:
        if word == "--allow-network":
            network = True
        elif word == "--memory":
            memory = next(rest, None)
        elif word in names:
            found[names[word]].append(next(rest, ""))
    lists = {name: tuple(values) for name, values in found.items()}
    return Grants.of(network=network, memory=memory, **lists)


def quoted(path: str) -> str:
    """A path as a value in a unit: its spaces are part of it, and a % is a %."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"' if any(c in text for c in " '\"\\;:#") else text


def _once(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))


def _absolute(text: str, option: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or not text.isprintable() or len(path.parts) < 2:
        msg = f"{option} {text!r}: name a folder or file by its whole path, such as /srv/exchange"
        raise WrongGrant(msg)
    return str(path)


def _device(text: str) -> str:
    path = _absolute(text, "--allow-device")
    if not path.startswith("/dev/"):
        msg = f"--allow-device {text!r}: name a device file, such as /dev/ttyUSB0"
        raise WrongGrant(msg)
    return path


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False)).removesuffix("/32").removesuffix("/128")
    except ValueError as error:
        msg = (
            f"--allow-address {text!r}: name an IP address such as 192.168.1.20 or a network such as "
            "192.168.1.0/24; names change their addresses: for one of those use --allow-network"
        )
        raise WrongGrant(msg) from error


def _credential(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        msg = f"--credential {text!r}: write NAME=FILE, such as llm_api_key=/etc/askfirst/llm_api_key"
        raise WrongGrant(msg)
    return name, _absolute(file, "--credential")


def _memory(text: str) -> str:
    if not _MEMORY.fullmatch(text):
        msg = f'--memory {text!r}: write an amount such as 1536M or 3G, or "infinity"'
        raise WrongGrant(msg)
    return text


def _is_in_a_home(path: str) -> bool:
    return any(path == home or path.startswith(f"{home}/") for home in _HOMES)
