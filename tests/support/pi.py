"""The userland of a 64-bit Raspberry Pi: Debian for aarch64 with the wheels that a Pi would get, run by qemu.

It is made once, in .tools/pi, by root, with mmdebstrap and qemu-user-static (Debian's packages).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".tools" / "pi"
SITE = "opt/site"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
PACKAGES = "python3,ca-certificates,libstdc++6,coreutils,bash,dash,tzdata"
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64")


@dataclass(frozen=True)
class Pi:
    """The root folder of such a userland."""

    root: Path

    def command(self, *arguments: str, environment: Mapping[str, str] | None = None) -> list[str]:
        """A command line that runs `askfirst` on the Pi, in a mount namespace of its own."""
        variables = {
            "PYTHONPATH": f"/{SITE}",
            "HOME": "/var/lib/askfirst",
            "LANG": "C.UTF-8",
            "LLM_BACKEND": "mock",
        }
        given = [f"{name}={value}" for name, value in {**variables, **(environment or {})}.items()]
        mounts = 'mount -t proc proc proc && mount --rbind /dev dev && exec chroot . "$@"'
        inner = [
            "/usr/bin/env",
            "-i",
            "PATH=/usr/bin:/bin",
            *given,
            "python3",
            "-P",
            "-m",
            "daemon",
            *arguments,
        ]
        return ["unshare", "--mount", "sh", "-c", f"cd {self.root} && {mounts}", "sh", *inner]

    def run(self, *arguments: str, limit: float = 600) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=limit, check=False
        )


def a_pi() -> Pi:
    """The userland, made if need be; the test is skipped, with the reason, where it cannot be."""
    for program, package in (("mmdebstrap", "mmdebstrap"), ("qemu-aarch64-static", "qemu-user-static")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt-get install {package}")
    if os.geteuid() != 0:
        pytest.skip("only root can make a root folder and register qemu")
    _register_qemu()
    made = FOLDER / "made"
    if not made.exists() or made.read_text() != _stamp():
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        _make(FOLDER / "root")
        made.write_text(_stamp())
    _install_ours(FOLDER / "root")
    return Pi(FOLDER / "root")


def _register_qemu() -> None:
    if not (BINFMT / "status").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    if not (BINFMT / "qemu-aarch64").exists():
        line = Path("/usr/lib/binfmt.d/qemu-aarch64.conf").read_text("latin-1")
        (BINFMT / "register").write_text(line, "latin-1")


def _stamp() -> str:
    text = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    return hashlib.sha256(text).hexdigest()


def _make(root: Path) -> None:
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--arch=arm64",
            "--variant=extract",
            f"--include={PACKAGES}",
            suite,
            str(root),
        ],
        check=True,
    )
    wheels = FOLDER / "wheels"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    only = [f"--platform={each}" for each in PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", *only]
    command += [f"--dest={wheels}", f"--python-version={_python_of(root)}"]
    command += [f"--constraint={ROOT / 'constraints.txt'}", *project["dependencies"]]
    subprocess.run(command, check=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / SITE)


def _python_of(root: Path) -> str:
    newest = max((root / "usr" / "bin").glob("python3.*[0-9]"))
    return newest.name.removeprefix("python")


def _install_ours(root: Path) -> None:
    """Today's packages, as the wheel carries them."""
    for package in ("llm", "agents", "daemon"):
        shutil.rmtree(root / SITE / package, ignore_errors=True)
        shutil.copytree(ROOT / package, root / SITE / package, ignore=shutil.ignore_patterns("__pycache__"))
    for data in ("config", "systemd"):
        target = root / SITE / "daemon" / "_data" / data
        shutil.copytree(ROOT / data, target, dirs_exist_ok=True)
