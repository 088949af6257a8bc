"""Where the socket of the daemon is: in its data folder, if the path is short enough for one."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from daemon.errors import DaemonError

SOCKET = "control.sock"
POINTER = "control.path"
"""File in the data folder that says where the socket is when it is not there."""

LONGEST_PATH = 103 if sys.platform == "darwin" else 107
"""Most bytes of a Unix socket's path: `sun_path` without its final zero."""

SYSTEM_FOLDER = Path("/run/askfirst")
"""What `RuntimeDirectory=askfirst` makes, where commands look for the socket of a group."""

_PREFIX = "askfirst-"
_PRIVATE = 0o600
_OF_GROUP = 0o660
_FOLDER_OF_GROUP = 0o750


def candidates(data_dir: Path, group: str | None) -> tuple[Path, ...]:
    """Where the socket may be, the likeliest first; blocks."""
    found = [data_dir / SOCKET, _pointed_to(data_dir)]
    if group is not None:  # who belongs to it cannot look into the data folder
        found += [_sibling(data_dir) / SOCKET, SYSTEM_FOLDER / SOCKET]
    return tuple(dict.fromkeys(path for path in found if path is not None and _is_socket(path)))


def make_socket(data_dir: Path, group: str | None) -> tuple[socket.socket, Path]:
    """A bound socket that only our own user can reach, or the group too; blocks.

    What an earlier daemon left is replaced: call it only with the daemon's lock held.

    Raises:
        DaemonError: it cannot be made; the message says why and what to do.
    """
    remove_socket(data_dir)
    try:
        path = _place(data_dir, group)
        made = _bound(path, group)
        if path.parent != data_dir:
            _write(data_dir / POINTER, f"{path}\n")
    except OSError as error:
        msg = f"the socket for commands cannot be made in {data_dir}: {error.strerror or error}"
        raise DaemonError(msg) from error
    return made, path


def remove_socket(data_dir: Path) -> None:
    """Remove the socket and the folder that was made for it; blocks. Never raises."""
    elsewhere = _pointed_to(data_dir)
    for path in (data_dir / SOCKET, elsewhere, data_dir / POINTER):
        if path is not None:
            with suppress(OSError):
                path.unlink()
    if elsewhere is not None and elsewhere.parent.name.startswith(_PREFIX):
        shutil.rmtree(elsewhere.parent, ignore_errors=True)


def _place(data_dir: Path, group: str | None) -> Path:
    if group is not None:
        return _folder_of(data_dir, group) / SOCKET
    path = data_dir / SOCKET
    return path if _fits(path) else _short_place()


def _short_place() -> Path:
    """A private folder whose name is short: below $XDG_RUNTIME_DIR, else where temporary files are."""
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp
        # mkdtemp makes a new folder with mode 0700, under a name that nobody can guess.
        if base and Path(base).is_dir() and _fits(Path(base) / f"{_PREFIX}12345678" / SOCKET):
            with suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base)) / SOCKET
    msg = "no folder for the socket for commands has a path short enough; set XDG_RUNTIME_DIR"
    raise DaemonError(msg)


def _folder_of(data_dir: Path, group: str) -> Path:
    """A folder that the group can enter: systemd's, else one beside the data folder."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    folder = Path(given) if given else _sibling(data_dir)
    if not _fits(folder / SOCKET):
        msg = f"the path {folder / SOCKET} is too long for a socket; set daemon.data_dir to a shorter one"
        raise DaemonError(msg)
    if not given:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            msg = f"{folder} is not ours; move it away, the socket for {group} has to be in it"
            raise DaemonError(msg)
        _give(folder, group, _FOLDER_OF_GROUP)
    return folder


def _sibling(data_dir: Path) -> Path:
    return data_dir.with_name(f"{data_dir.name}.control")


def _bound(path: Path, group: str | None) -> socket.socket:
    with suppress(FileNotFoundError):
        path.unlink()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(OSError):  # only Linux knows the mode of a socket that has no name yet
            os.fchmod(made.fileno(), _PRIVATE)
        made.bind(str(path))
        if group is None:
            path.chmod(_PRIVATE)
        else:
            _give(path, group, _OF_GROUP)
    except BaseException:
        made.close()
        raise
    made.settimeout(0)
    return made


def _give(path: Path, group: str, mode: int) -> None:
    try:
        number = grp.getgrnam(group).gr_gid
    except KeyError as error:
        msg = f"daemon.control_group: there is no group {group!r} on this machine; make it, or unset it"
        raise DaemonError(msg) from error
    try:
        os.chown(path, -1, number)
        path.chmod(mode)
    except OSError as error:
        user = pwd.getpwuid(os.geteuid()).pw_name
        msg = f"daemon.control_group: {user} has to belong to the group {group!r} to give it the socket"
        raise DaemonError(f"{msg} ({error.strerror})") from error


def _pointed_to(data_dir: Path) -> Path | None:
    try:
        text = (data_dir / POINTER).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = Path(text)
    return path if path.is_absolute() and path.name == SOCKET else None


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except OSError:  # a folder that is not ours to look into
        return False


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= LONGEST_PATH
