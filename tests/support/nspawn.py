"""A small Debian of our own with a real systemd as its first process, in a container of systemd-nspawn.

Needs root, systemd-nspawn and mmdebstrap (Debian packages systemd-container and mmdebstrap). The system is
made once, from the mirror that this machine's own apt uses, and kept in `.tools/`. It runs the interpreter
and the packages of this test run and the code of this checkout, all mounted read-only, in /opt/askfirst.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.waiting import seen_now

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".tools"
PACKAGES = "systemd,dbus,libpam-systemd,python3,libstdc++6"
"""Python's own package brings the libraries that an interpreter from elsewhere wants too."""

MADE = "systemd-root-1"
"""The number goes up when the system has to be made anew."""

ENVIRONMENT = Path("/opt/askfirst")
INTERPRETER = Path("/opt/python")
BUILD_LIMIT_S = 600
BOOT_LIMIT_S = 60.0
CALL_LIMIT_S = 120.0


@cache
def why_not() -> str | None:
    """Why there is no such machine here; None when there can be one."""
    if sys.platform != "linux":
        return "systemd runs on Linux only"
    if os.geteuid() != 0:
        return "a container with systemd needs root"
    for tool, package in (("systemd-nspawn", "systemd-container"), ("mmdebstrap", "mmdebstrap")):
        if shutil.which(tool) is None:
            return f"{tool} is missing; on Debian: apt-get install {package}"
    if subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False
    ).returncode:
        return "this root may not make namespaces, as in a container without privileges"
    return None if _sources() else "apt knows no mirror of this machine's own release"


def _sources() -> list[tuple[str, str, str]]:
    """Mirror, release and component of what this machine itself is made of."""
    release = _os_release().get("VERSION_CODENAME", "")
    asked = "$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", asked, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = {tuple(line.split("|")) for line in done.stdout.splitlines()}
    found = [
        (row[0], row[1], row[2])
        for row in sorted(rows)
        if len(row) == 4 and row[1] == release and row[3] in {"Debian", "Ubuntu", "Raspbian"}
    ]
    return [row for row in found if row[2] == "main"] or found


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def system() -> Path:
    """The system's files; made when they are not there yet, by one process at a time."""
    TOOLS.mkdir(exist_ok=True)
    release = _os_release().get("VERSION_CODENAME", "")
    target = TOOLS / f"{MADE}-{release}"
    with (TOOLS / f"{MADE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            _make(target)
    return target


def _make(target: Path) -> None:
    draft = target.with_name(f"{target.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    lines = [f"deb {site} {release} {component}" for site, release, component in _sources()]
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    proxies = [
        line for line in dump.splitlines() if line.lower().startswith(("acquire::http", "acquire::https"))
    ]
    unwanted = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"),
            *("--dpkgopt=force-unsafe-io", *unwanted, *(f"--aptopt={line}" for line in proxies)),
            *(lines[0].split()[2], str(draft), *lines),
        ],
        check=True,
        timeout=BUILD_LIMIT_S,
        stdin=subprocess.DEVNULL,
    )
    draft.rename(target)


@dataclass(frozen=True)
class Container:
    """A machine that runs.

    Attributes:
        leader: the process that is number 1 in there.
    """

    leader: int

    def run(
        self, *words: str, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in there, as root."""
        done = subprocess.run(
            [*("nsenter", "--target", str(self.leader), "--all", "--"), *self._clean(), *words],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=CALL_LIMIT_S,
            check=False,
        )
        if check and done.returncode != 0:
            msg = f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
            raise AssertionError(msg)
        return done

    @staticmethod
    def _clean() -> tuple[str, ...]:
        path = f"{ENVIRONMENT}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ("/usr/bin/env", "-i", f"PATH={path}", "HOME=/", "LANG=C.UTF-8", "SYSTEMD_PAGER=")

    def write(self, path: str, text: str, *, mode: int = 0o644, owner: str = "root") -> None:
        """Write a file in there."""
        self.run("sh", "-c", f"mkdir -p $(dirname {path}) && cat > {path}", stdin=text)
        self.run("chmod", f"{mode:o}", path)
        self.run("chown", f"{owner}:", path)

    def read(self, path: str) -> str:
        """A file in there."""
        return self.run("cat", path).stdout

    def shown(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", unit, f"--property={name}", "--value").stdout.strip()

    def wait_for(self, unit: str, name: str, value: str, limit: float = BOOT_LIMIT_S) -> float:
        """Wait until a property of a unit has that value; how many seconds it took."""
        began = time.monotonic()
        seen_now(lambda: self.shown(unit, name) == value, limit)
        return time.monotonic() - began

    def journal(self, *options: str) -> str:
        """The journal's lines."""
        return self.run("journalctl", "--no-pager", "--output=cat", *options).stdout


@contextmanager
def booted(folder: Path) -> Iterator[Container]:
    """A machine that has just started; `folder` gets what stands for the installed program.

    What is written in there is in memory, and gone afterwards.
    """
    mounts = _environment(folder)
    words = ["systemd-nspawn", "--register=no", "--keep-unit", "--quiet", "--boot", "--private-network"]
    words += ["--console=read-only", "--volatile=overlay", f"--directory={system()}", *mounts]
    with (folder / "console").open("wb") as console:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT)
    try:
        # The first child makes the room and then ends: the one that stays is the machine's first process.
        seen_now(lambda: any(map(_is_up, _inside(process, folder / "console"))), BOOT_LIMIT_S)
        (container,) = _inside(process, folder / "console")
        container.write("/etc/ld.so.conf.d/python.conf", f"{INTERPRETER}/lib\n")
        container.run("ldconfig")
        container.write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
        yield container
        container.run("systemctl", "poweroff", check=False)
        process.wait(30)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _inside(process: subprocess.Popen[bytes], console: Path) -> list[Container]:
    if process.poll() is not None:
        msg = f"systemd-nspawn ended with {process.returncode}: {console.read_text(errors='replace')}"
        raise AssertionError(msg)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [Container(int(child)) for child in children]


def _is_up(container: Container) -> bool:
    return (
        container.run("systemctl", "is-active", "multi-user.target", check=False).stdout.strip() == "active"
    )


def _environment(folder: Path) -> Sequence[str]:
    """An environment of this run's interpreter, packages and code; the options that mount it."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    elsewhere = sys.base_prefix != "/usr"
    home = INTERPRETER if elsewhere else Path("/usr")
    environment = folder / "environment"
    packages = environment / "lib" / name / "site-packages"
    for path in (environment / "bin", packages, environment / "src", environment / "deps"):
        path.mkdir(parents=True)
    for link in ("python", "python3", name):
        (environment / "bin" / link).symlink_to(home / "bin" / name)
    (environment / "pyvenv.cfg").write_text(f"home = {home}/bin\ninclude-system-site-packages = false\n")
    (packages / "askfirst.pth").write_text(f"{ENVIRONMENT}/src\n{ENVIRONMENT}/deps\n")
    script = environment / "bin" / "askfirst"
    script.write_text(
        f"#!{ENVIRONMENT}/bin/python3\nimport sys\nfrom daemon.__main__ import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    for path in (folder, environment):
        path.chmod(0o755)
    mounts = {
        environment: ENVIRONMENT,
        ROOT: ENVIRONMENT / "src",
        Path(sysconfig.get_path("purelib")): ENVIRONMENT / "deps",
        **({Path(sys.base_prefix): INTERPRETER} if elsewhere else {}),
    }
    return [f"--bind-ro={source}:{target}" for source, target in mounts.items()]
