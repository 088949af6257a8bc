"""Where the control socket is: short enough, private, and replaced only by who may."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from daemon.control import places
from daemon.control.places import LONGEST_PATH, POINTER, SOCKET, candidates, make_socket, remove_socket
from daemon.errors import DaemonError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose path is too long for a socket, and a short folder for what is run."""
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return folder


def reachable(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def test_it_is_in_the_data_folder_and_ours_alone(data: Path) -> None:
    made, path = make_socket(data, None)
    with made:
        made.listen()
        assert path == data / SOCKET
        assert mode(path) == 0o600
        assert candidates(data, None) == (path,)
        assert reachable(path)
        assert not (data / POINTER).exists()
    remove_socket(data)
    assert candidates(data, None) == ()
    assert list(data.iterdir()) == []


def test_a_long_path_leads_to_a_private_folder_elsewhere_and_is_written_down(deep: Path) -> None:
    made, path = make_socket(deep, None)
    with made:
        made.listen()
        assert len(os.fsencode(path)) <= LONGEST_PATH < len(os.fsencode(deep / SOCKET))
        assert (mode(path), mode(path.parent)) == (0o600, 0o700)
        assert mode(deep / POINTER) == 0o600
        assert candidates(deep, None) == (path,)
        assert reachable(path)
    remove_socket(deep)
    assert not path.parent.exists()
    assert list(deep.iterdir()) == []


def test_the_folder_for_what_is_run_is_preferred(
    deep: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    made, path = make_socket(deep, None)
    made.close()
    assert path.parent.parent == run
    remove_socket(deep)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("where", ["data", "deep"])
def test_what_a_killed_daemon_left_is_replaced(request: pytest.FixtureRequest, where: str) -> None:
    folder: Path = request.getfixturevalue(where)
    left, before = make_socket(folder, None)
    left.listen()
    left.close()  # as a kill does: the file stays
    assert before.exists()
    assert not reachable(before)
    made, path = make_socket(folder, None)
    with made:
        made.listen()
        assert reachable(path)
        assert path == before or not before.exists()
    remove_socket(folder)
    assert list(folder.iterdir()) == []


def test_a_pointer_to_anything_but_a_socket_of_ours_is_followed_by_nobody(data: Path, tmp_path: Path) -> None:
    victim = tmp_path / "letters"
    victim.write_text("dear")
    for text in (str(victim), "relative/control.sock", "\0", "", str(tmp_path / SOCKET)):
        (data / POINTER).write_text(text)
        assert candidates(data, None) == ()
        remove_socket(data)
        assert victim.read_text() == "dear"
    (data / POINTER).write_bytes(b"\xff\xfe")
    assert candidates(data, None) == ()


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match=r"cannot be made in .*nowhere: No such file"):
        make_socket(tmp_path / "nowhere", None)
    remove_socket(tmp_path / "nowhere")


def test_a_group_that_does_not_exist_is_told_with_the_setting(data: Path) -> None:
    with pytest.raises(DaemonError, match=r"daemon\.control_group: there is no group 'no-such-group'"):
        make_socket(data, "no-such-group")


def own_group() -> str:
    import grp

    return grp.getgrgid(os.getegid()).gr_name


def test_the_socket_of_a_group_is_beside_the_data_folder(data: Path) -> None:
    made, path = make_socket(data, own_group())
    with made:
        made.listen()
        assert path == data.with_name("data.control") / SOCKET
        assert (mode(path), mode(path.parent)) == (0o660, 0o750)
        assert path.stat().st_gid == path.parent.stat().st_gid == os.getegid()
        assert candidates(data, None) == (path,), "our own user finds it without knowing of the group"
        assert path in candidates(data, own_group())
    remove_socket(data)
    assert not path.exists()


def test_the_socket_of_a_group_is_in_systemds_folder_where_there_is_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o755)
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{run}:/elsewhere")
    monkeypatch.setattr(places, "SYSTEM_FOLDER", run)
    made, path = make_socket(data, own_group())
    made.close()
    assert path == run / SOCKET
    assert (mode(path), mode(run)) == (0o660, 0o755)
    (data / POINTER).unlink()  # what a user of the group cannot read
    assert candidates(data, own_group()) == (path,)


def test_a_link_in_the_place_of_the_groups_folder_is_not_followed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir(mode=0o700)
    data.with_name("data.control").symlink_to(tmp_path / "victim")
    with pytest.raises(DaemonError, match="is not ours; move it away"):
        make_socket(data, own_group())
    assert mode(tmp_path / "victim") == 0o700
    assert list((tmp_path / "victim").iterdir()) == []
