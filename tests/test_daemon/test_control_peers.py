"""Strangers at the control socket: other users, and whoever sends nonsense."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.control import BEDS, Daemon, daemon_of
from tests.support.program import Program

pytestmark = pytest.mark.process


class TestOtherUsers:
    """As root, another user is made by giving up root's rights in a process of its own."""

    CLIENT = """
import json, os, socket, sys
folder, uid, *lines = sys.argv[1:]
os.chdir(folder)  # as root: the folders above are closed to others
user = int(uid)
os.setgroups([])
os.setgid(user)
os.setuid(user)
channel = socket.socket(socket.AF_UNIX)
channel.settimeout(30)
channel.connect("control.sock")
answers = channel.makefile("rb")
for line in lines:
    channel.sendall(line.encode() + b"\\n")
    print(answers.readline().decode().strip(), flush=True)
"""

    @pytest.fixture(autouse=True)
    def as_root(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can become another user")

    def ask(self, folder: Path, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        uid = pwd.getpwnam("nobody").pw_uid
        done = subprocess.run(
            [sys.executable, "-c", self.CLIENT, str(folder), str(uid), *map(json.dumps, requests)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def hello(self) -> dict[str, Any]:
        from daemon.control.wire import PROTOCOL
        from daemon.version import own_version

        return {"do": "hello", "with": {"version": own_version(), "protocol": PROTOCOL}}

    def test_the_folder_keeps_them_out(self, running: Daemon) -> None:
        with pytest.raises(AssertionError, match="PermissionError"):
            self.ask(running.socket.parent, self.hello())

    def test_whoever_gets_to_the_socket_nevertheless_is_refused_by_their_number(
        self, running: Daemon
    ) -> None:
        running.socket.parent.chmod(0o711)
        running.socket.chmod(0o666)
        try:
            (answer,) = self.ask(running.socket.parent, self.hello())
        finally:
            running.socket.parent.chmod(0o700)
        assert answer["error"]["kind"] == "NotAllowed"
        said = answer["error"]["message"]
        assert said.endswith("from root only, not from nobody; see daemon.control_group")
        running.wait_for(f"a command was refused: {said}")
        assert running.call("proposals", "list").code == 0

    def test_a_user_of_the_group_decides_under_the_login_name_whatever_they_claim(
        self, garden: Program
    ) -> None:
        group = subprocess.run(["id", "-gn", "nobody"], capture_output=True, text=True, check=True)
        path = garden.folder / "config" / "askfirst.toml"
        name = group.stdout.strip()
        path.write_text(path.read_text().replace("[web]", f'control_group = "{name}"\n[web]'))
        decision = {"proposal_id": 1, "by": "root", "via": "web", "comment": "\n2026 approve by root"}
        with daemon_of(garden) as daemon:
            daemon.wait_for("run finished")
            answers = self.ask(
                garden.folder / "data.control",
                self.hello(),
                {"do": "desk.reject", "with": decision},
                {"do": "controls.reload", "with": {}},
            )
            assert "ok" in answers[1], answers
            assert answers[2]["error"]["kind"] == "NotAllowed"
            changed = daemon.wait_for("proposal changed")
            assert (changed["by"], changed["via"]) == ("nobody", "cli")
            assert daemon.call("proposals", "reject", "2", "--by", "ana").code == 0, "our own user still may"
            assert daemon.wait_for("proposal changed", 2)["by"] == "ana"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
kinds = ("Proposal", "RunResult", "datetime", "timedelta", "path", "tuple", "map", "ProposalStatus", "os")
tagged = st.builds(lambda kind, value: {"$": kind, "v": value}, st.sampled_from(kinds), plain)
moments = st.datetimes().map(lambda at: {"$": "datetime", "v": at.isoformat()})
odd = st.sampled_from([1, 2, -1, 2**63, "garden", "\udcff", "\0", {"$": "ProposalStatus", "v": "pending"}])
names = st.sampled_from(
    ["proposals.get", "proposals.list", "proposals.events", "proposals.open_for", "runs.get", "runs.list",
     "runs.calls_by_id", "due_times.settled", "states.get", "desk.approve", "desk.reject", "desk.edit",
     "desk.snooze", "desk.apply", "desk.undo", "controls.pause", "controls.why", "status", "hello", "nosuch"]
)  # fmt: skip
parameters = st.sampled_from(
    ["proposal_id", "status", "agent", "limit", "run_id", "call_ids", "due", "by", "via", "comment", "digest",
     "apply", "changes", "until", "reason", "version", "protocol", "self"]
)  # fmt: skip
requests = st.builds(
    lambda do, given: json.dumps({"do": do, "with": given}).encode(),
    names | st.text(max_size=10),
    st.dictionaries(parameters, odd | tagged | moments | plain, max_size=6),
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that lives through all of it."""
    program = Program.with_garden(tmp_path_factory.mktemp("fuzz"), *BEDS, settings='isolation = "none"')
    with daemon_of(program) as daemon:
        daemon.wait_for("run finished")
        yield daemon
        assert daemon.call("proposals", "list").code == 0
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log.read_text()
        unexpected = [line for line in daemon.lines if "unexpectedly" in line["event"]]
        assert unexpected == []


class TestFuzz:
    """Five hundred lines of nonsense and half-sense, over some connections, and the daemon is as before."""

    @settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(line=requests)
    def test_requests_with_anything_in_them_get_one_answer_each(self, fuzzed: Daemon, line: bytes) -> None:
        with fuzzed.speaker() as speaker:
            greeting = speaker.hello()
            assert greeting is not None
            assert "ok" in greeting
            speaker.send(line + b"\n")
            answer = speaker.answer()
            assert answer is not None
            assert answer.keys() in ({"ok"}, {"error"}), answer
            assert "Traceback" not in json.dumps(answer)

    @settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.binary(max_size=300), greeted=st.booleans())
    def test_bytes_get_an_error_or_nothing(self, fuzzed: Daemon, data: bytes, greeted: bool) -> None:
        with fuzzed.speaker() as speaker:
            if greeted:
                speaker.hello()
            speaker.send(data + b"\n")
            speaker.end()
            answer = speaker.answer()
            assert answer is None or answer.keys() == {"error"}, answer
            assert speaker.answer() is None
