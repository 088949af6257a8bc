"""What can be done from inside the service? Probes of the sandbox, run by an agent of the daemon, a plugin.

As a program it runs them where it is and prints what came of them as JSON.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import multiprocessing
import os
import resource
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATE = Path("/var/lib/askfirst")
RUNTIME = Path("/run/askfirst")
LIBC = ctypes.CDLL(None, use_errno=True)
BPF = {"x86_64": 321, "aarch64": 280}
NEW_USER, NEW_NET, NEW_MOUNT = 0x10000000, 0x40000000, 0x00020000


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library; OSError when it fails."""
    found = int(getattr(LIBC, name)(*arguments))
    if found == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


def in_child(work: Callable[[], object]) -> None:
    """Do what would change this very process in another one; raises when that failed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - whatever it was, the child failed
            os._exit(1)
        os._exit(0)
    _, code = os.waitpid(child, 0)
    if code != 0:
        msg = f"the child ended with {code}"
        raise PermissionError(msg)


def execute_from(folder: Path) -> None:
    program = folder / "probe-program"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    try:
        subprocess.run([program], check=True, timeout=30)
    finally:
        program.unlink()


def others_are_hidden() -> None:
    """Raises when no process of anybody else is to be seen."""
    seen = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    if not any(path.stat().st_uid != os.getuid() for path in seen):
        msg = "only its own processes are to be seen"
        raise PermissionError(msg)


def setuid_file() -> None:
    file = STATE / "probe-setuid"
    file.touch()
    try:
        file.chmod(0o4755)
        if not file.stat().st_mode & stat.S_ISUID:
            msg = "the bit was dropped"
            raise PermissionError(msg)
    finally:
        file.unlink()


def writable_code() -> None:
    access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    mmap.mmap(-1, mmap.PAGESIZE, prot=access).close()


def bpf() -> None:
    call("syscall", ctypes.c_long(BPF[os.uname().machine]), 0, None, 0)


REFUSED: dict[str, Callable[[], object]] = {
    "write /etc": lambda: Path("/etc/probe").touch(),
    "write /usr": lambda: Path("/usr/probe").touch(),
    "write the program": lambda: Path(sys.prefix, "probe").touch(),
    "write the configuration": lambda: Path("/etc/askfirst/askfirst.toml").open("a").close(),
    "read /etc/shadow": lambda: Path("/etc/shadow").read_text(),
    "read the key's own file": lambda: Path("/etc/askfirst/llm_api_key").read_text(),
    "list /home": lambda: list(Path("/home").iterdir()),
    "list root's home": lambda: list(Path("/root").iterdir()),
    "list /var/log": lambda: list(Path("/var/log").iterdir()),
    "list /var/cache": lambda: list(Path("/var/cache").iterdir()),
    "list /boot": lambda: list(Path("/boot").iterdir()),
    "see other processes": others_are_hidden,
    "read another's environment": lambda: Path("/proc/1/environ").read_text(),
    "signal process 1": lambda: os.kill(1, 0),
    "memory that is written and executed": writable_code,
    "execute from the state folder": lambda: execute_from(STATE),
    "execute from the runtime folder": lambda: execute_from(RUNTIME),
    "execute from /tmp": lambda: execute_from(Path("/tmp")),
    "execute from /var/tmp": lambda: execute_from(Path("/var/tmp")),
    "execute from /dev/shm": lambda: execute_from(Path("/dev/shm")),
    "reach another machine": lambda: socket.create_connection(("10.0.0.1", 80), 1).close(),
    "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
    "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close(),
    "a new user namespace": lambda: in_child(lambda: call("unshare", NEW_USER)),
    "a new network namespace": lambda: in_child(lambda: call("unshare", NEW_NET)),
    "a new mount namespace": lambda: in_child(lambda: call("unshare", NEW_MOUNT)),
    "be traced": lambda: in_child(lambda: call("ptrace", 0, 0, 0, 0)),
    "another personality": lambda: in_child(lambda: call("personality", ctypes.c_ulong(0x0040000))),
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "unmount": lambda: call("umount2", b"/tmp", 2),
    "change the root": lambda: os.chroot("/tmp"),
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "set the host's name": lambda: call("sethostname", b"probe", 5),
    "reboot": lambda: call("reboot", 0),
    "swap": lambda: call("swapon", b"/tmp/none", 0),
    "load a program into the kernel": bpf,
    "read the kernel's log": lambda: call("klogctl", 3, ctypes.create_string_buffer(64), 64),
    "become root": lambda: os.setuid(0),
    "another group": lambda: os.setgid(0),
    "become more important": lambda: os.nice(-5),
    "choose its processors": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "real-time priority": lambda: in_child(
        lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    ),
    "a file that runs as another user": setuid_file,
    "make a device": lambda: os.mknod(STATE / "probe-device", stat.S_IFCHR | 0o600, os.makedev(1, 1)),
    "open /dev/kmsg": lambda: Path("/dev/kmsg").open("rb").close(),
    "open /dev/mem": lambda: Path("/dev/mem").open("rb").close(),
    "change a kernel setting": lambda: Path("/proc/sys/kernel/domainname").write_text("probe"),
    "change its own limits": lambda: next(Path("/sys/fs/cgroup").rglob("pids.max")).write_text("max"),
}
"""What must be refused, each one by an error."""

WITHOUT_THE_SANDBOX = frozenset(
    [
        "list /home",
        "list /var/log",
        "list /var/cache",
        "list /boot",
        "see other processes",
        "memory that is written and executed",
        "execute from the state folder",
        "execute from /tmp",
        "execute from /var/tmp",
        "netlink socket",
        "be traced",
        "another personality",
        "choose its processors",
        "a file that runs as another user",
    ]
)
"""Those that its user may do elsewhere: they show that the probes can tell the difference."""


def unix_socket() -> None:
    path = STATE / "probe.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(path))
        server.listen()
        client.connect(str(path))
    path.unlink()


def loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), 5).close()


def sorted_on_disk() -> None:
    with sqlite3.connect(STATE / "probe.sqlite3") as database:
        database.execute("pragma journal_mode=wal")
        database.execute("create table if not exists numbers (n)")
        numbers = "with recursive c(n) as (select 1 union all select n + 1 from c limit 20000)"
        database.execute(f"insert into numbers {numbers} select n from c")
        database.execute("select count(*) from (select n from numbers order by -n)").fetchone()
    database.close()


def limited_child() -> None:
    """As the program starts the processes of its agents and engines."""

    def limit() -> None:
        os.nice(5)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        call("prctl", 1, signal.SIGKILL, 0, 0, 0)

    code = "import os, json; print(json.dumps(os.getpid()))"
    words = [sys.executable, "-I", "-c", code]
    done = subprocess.run(words, preexec_fn=limit, start_new_session=True, capture_output=True, check=True)
    json.loads(done.stdout)


def thread() -> None:
    worker = threading.Thread(target=lambda: None)
    worker.start()
    worker.join()


def spawned() -> None:
    process = multiprocessing.get_context("fork").Process(target=os.getpid)
    process.start()
    process.join(30)
    if process.exitcode != 0:
        msg = f"it ended with {process.exitcode}"
        raise OSError(msg)


def credential() -> str:
    return Path(os.environ["CREDENTIALS_DIRECTORY"], "llm_api_key").read_text().strip()


def called_back() -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)())


def temporary_file() -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")


MUST_WORK: dict[str, Callable[[], object]] = {
    "write the state folder": lambda: (STATE / "probe-file").write_text("x"),
    "write the runtime folder": lambda: (RUNTIME / "probe-file").write_text("x"),
    "a temporary file": temporary_file,
    "SQLite with a log and a sort": sorted_on_disk,
    "listen and connect on this machine": loopback,
    "a Unix socket in the state folder": unix_socket,
    "resolve localhost": lambda: socket.getaddrinfo("localhost", 80),
    "a thread": thread,
    "a process": spawned,
    "the interpreter, with limits and less important": limited_child,
    "a callback from C": called_back,
    "read its configuration": lambda: Path("/etc/askfirst/askfirst.toml").read_text(),
    "read its own memory use": lambda: Path("/proc/self/statm").read_text(),
    "read the machine's memory": lambda: Path("/proc/meminfo").read_text(),
    "random numbers": lambda: os.urandom(8),
    "its key": credential,
}
"""What the program and its agents need."""


def results() -> dict[str, str]:
    """What came of each probe: "ok", or the error's name and text."""
    return {name: _tried(probe) for name, probe in {**REFUSED, **MUST_WORK}.items()}


def _tried(probe: Callable[[], object]) -> str:
    try:
        probe()
    except BaseException as error:  # noqa: BLE001 - a probe may fail in any way
        return f"{type(error).__name__}: {error}"[:200]
    return "ok"


if __name__ == "__main__":
    print(json.dumps(results()))
