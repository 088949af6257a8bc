"""Who is at the other end of a Unix socket: the kernel says so, whatever the other end claims."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Protocol

from daemon.errors import NotAllowed

_ROOT = 0
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1  # <sys/un.h> of macOS
_XUCRED = struct.Struct("IIh2x16I")  # version, uid, number of groups, groups: <sys/ucred.h>
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)


class Endpoint(Protocol):
    """What a socket and asyncio's stand-in for one have in common."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """As that of `socket.socket`."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A user who gives commands.

    Attributes:
        uid: the user's number.
        login: the login name, or "uid1000" without one.
        trusted: whether it is our own user or root, who may do everything and name another person.
    """

    uid: int
    login: str
    trusted: bool


def uid_of(endpoint: Endpoint) -> int:
    """The user of the process that made the other end.

    Raises:
        OSError: the kernel does not say.
    """
    if sys.platform == "darwin":
        return int(_XUCRED.unpack(endpoint.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED.size))[1])
    return int(_UCRED.unpack(endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1])


def admitted(uid: int, group: str | None) -> Peer:
    """The user of that number, if commands are taken from them; blocks.

    Args:
        uid: the user.
        group: the group whose users may give commands, besides our own user and root.

    Raises:
        NotAllowed: they are not.
    """
    login = _login(uid)
    if uid in (os.geteuid(), _ROOT):
        return Peer(uid, login, trusted=True)
    if group is None:
        own = " and ".join(dict.fromkeys((_login(os.geteuid()), "root")))
        msg = f"this daemon takes commands from {own} only, not from {login}; see daemon.control_group"
        raise NotAllowed(msg)
    if not _belongs(uid, group):
        msg = f"this daemon takes commands from users of the group {group} only, and {login} is none"
        raise NotAllowed(msg)
    return Peer(uid, login, trusted=False)


def _login(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid{uid}"


def _belongs(uid: int, group: str) -> bool:
    try:
        user, number = pwd.getpwuid(uid), grp.getgrnam(group).gr_gid
    except KeyError:
        return False
    return number in os.getgrouplist(user.pw_name, user.pw_gid)
