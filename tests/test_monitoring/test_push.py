"""What `--once` leaves behind, by the real promtool and with the real Pushgateway."""

from __future__ import annotations

import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.program import Program
from tests.support.prometheus import complaints, samples, tool
from tests.support.scripted_model import ScriptedModel
from tests.support.waiting import seen_now
from tests.support.workload import prepared

pytestmark = pytest.mark.monitoring


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as response:
        return str(response.read().decode())


@contextmanager
def pushgateway(folder: Path) -> Iterator[str]:
    """The real one on loopback, with its log in a file; yields its address."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with suppress(OSError):
            return "OK" in get(f"{address}/-/ready")
        return False

    command = [tool("prometheus-pushgateway"), f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "pushgateway.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            seen_now(answers)
            yield address
        finally:
            process.kill()
            process.wait()


def test_promtool_finds_nothing_in_the_file_and_the_gateway_takes_what_is_pushed(tmp_path: Path) -> None:
    file = tmp_path / "askfirst.prom"
    with ScriptedModel() as model, pushgateway(tmp_path) as address:
        program: Program = prepared(tmp_path, model)
        for runs in (1, 2):
            done = program.call("--once", "--metrics-file", str(file), "--pushgateway", address)
            assert done.code == 1, done  # one of its agents fails, and is told of as well
            assert "Pushgateway" not in done.err
            text = file.read_text(encoding="utf-8")
            assert complaints(text) == ""
            left, pushed = samples(text), samples(get(f"{address}/metrics"))
            series = 'askfirst_agent_runs_total{agent="porter",outcome="succeeded"}'
            assert left[series] == runs
            host = socket.gethostname()
            place = f'agent="porter",instance="{host}",job="askfirst",outcome="succeeded"'
            assert pushed[f"askfirst_agent_runs_total{{{place}}}"] == 1  # it keeps the last push
            assert pushed[f'push_failure_time_seconds{{instance="{host}",job="askfirst"}}'] == 0
            if runs == 1:  # one for one, also the histograms: nothing was refused, merged or renamed
                ours = [name for name in pushed if 'job="askfirst"' in name and name[:5] != "push_"]
                assert len(ours) == len(left)
    assert "level=error" not in (tmp_path / "pushgateway.log").read_text(encoding="utf-8")
