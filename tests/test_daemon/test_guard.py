"""The program notices when one of its three packages is somebody else's, before it does anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.guard import foreign_packages, owners_of
from tests.support.program import ROOT, Program

pytestmark = pytest.mark.process


def test_the_packages_of_this_checkout_are_ours() -> None:
    assert foreign_packages() == ()


@pytest.mark.parametrize("package", ["llm", "agents", "daemon"])
def test_no_installed_distribution_but_ours_owns_one_of_the_packages(package: str) -> None:
    assert owners_of(package) == ()


def test_a_folder_of_the_users_own_that_hides_a_package_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("raise SystemExit('the user's code ran')\n")
    done = Program(tmp_path, options=()).run("--version")
    assert done.code == 78, done
    assert "the package 'agents' is not Askfirst's" in done.err
    assert f"{tmp_path / 'agents'}" in done.err
    assert "python -P -m daemon" in done.err
    assert done.out == ""


def test_python_p_runs_in_a_folder_that_has_packages_of_the_same_names(tmp_path: Path) -> None:
    for name in ("agents", "llm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(99)\n")
    done = Program(tmp_path).run("--version")
    assert done.code == 0, done
    assert done.out.startswith("askfirst ")


def test_a_folder_without_init_does_not_hide_ours(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "mine.py").write_text("raise SystemExit(99)\n")
    assert Program(tmp_path, options=()).run("--version").code == 0


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the three packages, as an installation has them."""
    site = tmp_path / "site"
    for name in ("llm", "agents", "daemon"):
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    return site


def start(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", *options, "-c", "from daemon.__main__ import main; main()", "--version"],
        cwd=site.parent,
        env={**Program(site.parent).whole_environment({}), "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_copy_of_the_packages_runs(installed: Path) -> None:
    assert start(installed).returncode == 0


@pytest.mark.parametrize("package", ["llm", "agents", "daemon"])
def test_a_package_that_another_distribution_wrote_over_is_named_with_the_way_out(
    installed: Path, package: str
) -> None:
    (installed / package / "__init__.py").write_text('"""Another project entirely."""\n')
    done = start(installed)
    assert done.returncode == 78, done.stderr
    assert f"the package {package!r} is not Askfirst's" in done.stderr
    assert "was overwritten by another distribution" in done.stderr
    assert "--force-reinstall" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["llm", "agents", "daemon"])
def test_a_package_whose_init_was_uninstalled_is_named_with_the_way_out(
    installed: Path, package: str
) -> None:
    (installed / package / "__init__.py").unlink()
    done = start(
        installed, "-S"
    )  # without site-packages, or Python would go on to the checkout installed there
    assert done.returncode == 78, done.stderr
    assert f"{installed / package / '__init__.py'} is missing" in done.stderr
    assert "--force-reinstall" in done.stderr


def test_a_distribution_that_says_it_owns_a_package_is_found_by_name(installed: Path) -> None:
    info = installed / "python_daemon-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: python-daemon\nVersion: 3.1\n")
    (info / "RECORD").write_text("daemon/__init__.py,,\n")
    (installed / "daemon" / "__init__.py").write_text('"""Well-behaved Unix daemons."""\n')
    done = start(installed)
    assert done.returncode == 78
    assert "was overwritten by python-daemon" in done.stderr
    assert "uninstall python-daemon" in done.stderr
