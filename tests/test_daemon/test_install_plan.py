"""The steps of an installation, and what is told of one that does not work."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from daemon.install.grants import Grants, given, quoted
from daemon.install.machine import Machine
from daemon.install.marked import is_ours, is_untouched, marked, marked_xml
from daemon.install.plan import Call, Carrier, File, Folder, StepFailed, readable_by


class Told:
    """A carrier on the machine itself whose files are all below a scratch folder."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.carrier = Carrier(Machine(), self.lines.append)


def call(*words: str, **more: object) -> Call:
    return Call(words=words, why="tests it", **more)  # type: ignore[arg-type]


def test_a_file_is_written_whole_with_its_mode_whatever_the_umask_is(tmp_path: Path) -> None:
    told, before = Told(), os.umask(0o077)
    try:
        told.carrier.carry_out([File(path=tmp_path / "a" / "unit", text="[Unit]\n", mode=0o644)])
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "unit").read_text() == "[Unit]\n"
    assert (tmp_path / "a" / "unit").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["unit"]
    assert told.lines == [f"wrote {tmp_path}/a/unit"]


def test_a_draft_that_a_crash_left_behind_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".unit.new").write_text("half of")
    Told().carrier.carry_out([File(path=tmp_path / "unit", text="whole\n")])
    assert (tmp_path / "unit").read_text() == "whole\n"


def test_a_step_that_cannot_be_done_names_itself_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for step in (File(path=tmp_path / "file" / "x", text=""), Folder(path=tmp_path / "file" / "x")):
        with pytest.raises(StepFailed, match=r"could not (write|make the folder) .*/file/x .*: "):
            Told().carrier.carry_out([step])


def test_a_command_that_fails_ends_it_with_what_it_said_and_what_to_do(tmp_path: Path) -> None:
    told, mark = Told(), tmp_path / "after"
    fails = call("sh", "-c", "echo first; echo no such unit >&2; exit 5", help="see the log")
    with pytest.raises(StepFailed, match="failed: no such unit; see the log"):
        told.carrier.carry_out([fails, File(path=mark, text="")])
    assert not mark.exists()
    assert not told.carrier.changed


def test_a_command_that_may_fail_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    told, mark = Told(), tmp_path / "after"
    told.carrier.carry_out([call("no-such-program-anywhere", may_fail=True), File(path=mark, text="")])
    assert mark.exists()
    assert "no-such-program-anywhere failed" in told.lines[0]


def test_a_command_that_would_change_nothing_is_not_run(
    tmp_path: Path,
) -> None:
    told = Told()
    once = call("touch", str(tmp_path / "ran"), unneeded=lambda _machine, changed: not changed)
    told.carrier.carry_out([once])
    assert not (tmp_path / "ran").exists()
    told.carrier.carry_out([File(path=tmp_path / "unit", text="x"), once])
    assert (tmp_path / "ran").exists()


def test_nothing_is_called_for_a_folder_that_stands_for_a_machine(tmp_path: Path) -> None:
    Carrier(Machine(root=tmp_path / "root"), print).carry_out([call("touch", str(tmp_path / "ran"))])
    assert not (tmp_path / "ran").exists()


def test_who_may_read_a_file_is_told_by_its_mode(tmp_path: Path) -> None:
    file, me = tmp_path / "key", pwd.getpwuid(os.getuid()).pw_name
    file.write_text("k")
    for mode, mine, others in (
        (0o600, True, False),
        (0o644, True, True),
        (0o040, True, False),
        (0o000, False, False),
    ):
        file.chmod(mode)
        assert (readable_by(file, me), readable_by(file, "nobody-of-that-name")) == (mine, others), oct(mode)


def test_the_mark_tells_whether_a_file_is_ours_and_untouched() -> None:
    plist = marked_xml('<?xml version="1.0"?>\n<!DOCTYPE plist>\n<plist>\n</plist>\n')
    for text in (marked("[Unit]\nA=b\n"), plist):
        assert is_ours(text)
        assert is_untouched(text)
        assert is_ours(text + "more\n")
        assert not is_untouched(text + "more\n")
    assert not is_ours("[Unit]\n")
    assert plist.startswith("<?xml")


def test_a_drop_in_says_with_which_options_it_was_given() -> None:
    grants = Grants.of(
        paths=("/srv/a b", "/home/ana/x"),
        devices=("/dev/video0",),
        addresses=("10.0.0.7", "192.168.1.0/24", "fd00::1"),
        network=True,
        credentials=("key=/etc/k", "other=/etc/o o"),
        memory="3G",
    )
    for sandboxed in (True, False):
        assert given(marked(grants.drop_in(sandboxed=sandboxed))) == grants
    assert "IPAddress" not in grants.drop_in(sandboxed=False)
    assert given("# Given with: --allow-path 'no end") == Grants()
    assert given("# Given with: --allow-path relative\n") == Grants()
    assert not Grants()


def test_a_credential_that_is_given_again_replaces_the_older_one() -> None:
    older = Grants.of(credentials=("a=/etc/1", "b=/etc/2"))
    joined = older.joined(Grants.of(credentials=("a=/etc/3",)))
    assert joined.credentials == (("a", "/etc/3"), ("b", "/etc/2"))


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/srv/a", "/srv/a"),
        ("/srv/a b", '"/srv/a b"'),
        ("/srv/100%", "/srv/100%%"),
        ('/srv/"x"', '"/srv/\\"x\\""'),
        ("/srv/a\\b", '"/srv/a\\\\b"'),
    ],
)
def test_a_path_is_written_as_systemd_reads_it(path: str, written: str) -> None:
    assert quoted(path) == written
