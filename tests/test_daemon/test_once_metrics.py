"""`--once --metrics-file` and `--pushgateway`: what is left where, and what happens when that cannot be."""

from __future__ import annotations

import base64
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from daemon.errors import DaemonError
from daemon.observability.catalogue import METRICS
from daemon.pushing import counted_on, file_problem, of_runs, write_file
from tests.support.control import daemon_of
from tests.support.program import Program
from tests.support.prometheus import samples

pytestmark = pytest.mark.process

PASSWORD = "hush-very-secret"


class Gateway:
    """Takes what is pushed, and answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.seen: list[tuple[str, str, str, str]] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                who = self.headers.get("Authorization", "")
                gateway.seen.append((self.path, self.headers["Content-Type"], who, body))
                self.send_response(gateway.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.server.shutdown()
    made.server.server_close()


def runs_of(file: Path) -> dict[str, float]:
    found = samples(file.read_text(encoding="utf-8"))
    return {series.partition('outcome="')[2][:-2]: n for series, n in found.items() if "runs_total" in series}


def test_each_run_goes_on_counting_in_a_file_that_others_may_read_also_when_it_failed(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, "leeks dry", settings="ask = true")
    file = tmp_path / "askfirst.prom"
    for _ in range(2):
        done = program.call("--once", "--json", "--metrics-file", str(file))
        assert done.code == 0, done
    found = samples(file.read_text(encoding="utf-8"))
    assert runs_of(file) == {"succeeded": 2.0, "failed": 0.0}
    assert found['askfirst_llm_cache_misses_total{backend="mock",model="mock"}'] == 1
    assert found['askfirst_llm_cache_hits_total{backend="mock",model="mock"}'] == 1
    assert found["askfirst_agent_run_duration_seconds_count"] == 2
    assert found['askfirst_agent_run_duration_seconds_bucket{le="+Inf"}'] == 2
    assert found['askfirst_proposals{agent="garden",status="pending"}'] == 1
    succeeded = found['askfirst_agent_last_success_timestamp_seconds{agent="garden"}']

    config = tmp_path / "config" / "askfirst.toml"
    config.write_text(config.read_text(encoding="utf-8") + "fail = true\n", encoding="utf-8")
    failed = program.call("--once", "--metrics-file", str(file))
    assert failed.code == 1
    found = samples(file.read_text(encoding="utf-8"))
    assert runs_of(file) == {"succeeded": 2.0, "failed": 1.0}
    assert found['askfirst_agent_last_success_timestamp_seconds{agent="garden"}'] == succeeded
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.glob("*askfirst.prom*")] == ["askfirst.prom"]
    assert [path.name for path in tmp_path.glob(".*prom*")] == []
    # What only a program can tell that goes on running, and node_exporter's own, is not in it.
    assert not [
        series for series in found if series.startswith(("process_", "askfirst_loop", "askfirst_log"))
    ]
    assert not [
        line
        for line in file.read_text(encoding="utf-8").splitlines()
        if len(line.split()) == 3 and not line.startswith("#")
    ]  # a time behind the value, which the collector refuses


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--once", "--metrics-file", "metrics.txt"), "only files that end with .prom, not 'metrics.txt'"),
        (("--once", "--metrics-file", "nowhere/a.prom"), "nowhere; make it, or name the one that"),
        (("--once", "--metrics-file", "folder.prom"), "folder.prom is a folder"),
        (("--metrics-file", "a.prom"), "--metrics-file needs --once"),
        (("--once", "--pushgateway", f"ftp://me:{PASSWORD}@x"), "must begin with http:// or https://"),
        (("--pushgateway", "http://x"), "--pushgateway needs --once"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_anything_runs(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    program = Program.with_garden(tmp_path, "leeks dry")
    (tmp_path / "folder.prom").mkdir()
    done = program.call(*arguments)
    assert done.code == 64, done
    assert said in done.err
    assert PASSWORD not in done.err
    assert not (tmp_path / "data" / "askfirst.sqlite3").exists()


def test_a_pushgateway_is_told_with_its_password_which_nobody_else_sees(
    tmp_path: Path, gateway: Gateway
) -> None:
    program = Program.with_garden(tmp_path, "leeks dry")
    address = f"http://me:{PASSWORD}@{gateway.address}/behind"
    done = program.call("--once", "--debug", "--pushgateway", address)
    assert done.code == 0, done
    ((path, kind, who, body),) = gateway.seen
    assert path.startswith("/behind/metrics/job/askfirst/instance/")
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert base64.b64decode(who.removeprefix("Basic ")).decode() == f"me:{PASSWORD}"
    assert samples(body)['askfirst_agent_runs_total{agent="garden",outcome="succeeded"}'] == 1
    assert PASSWORD not in str(done)

    gateway.status = 503  # and by the configuration
    variables = {"ASKFIRST_METRICS__PUSHGATEWAY": address}
    done = program.call("--once", **variables)
    assert done.code == 0, done
    assert "the Pushgateway at 127.0.0.1 did not take the metrics: it answers 503" in done.err
    assert len(gateway.seen) == 2
    assert PASSWORD not in str(done)
    explained = program.call("config", "explain", "metrics.pushgateway", **variables)
    assert explained.code == 0
    assert PASSWORD not in str(explained)


def test_a_daemon_that_runs_has_the_metrics_itself(tmp_path: Path, gateway: Gateway) -> None:
    program = Program.with_garden(tmp_path, "leeks dry")
    file = tmp_path / "askfirst.prom"
    with daemon_of(program) as daemon:
        for options in (("--metrics-file", str(file)), ("--pushgateway", f"http://{gateway.address}")):
            refused = daemon.call("--once", *options)
            assert refused.code == 75, refused
            assert f"{options[0]}: a daemon runs here (pid {daemon.process.pid}" in refused.err
            assert "let Prometheus scrape its /metrics" in refused.err
        by_setting = daemon.call("--once", ASKFIRST_METRICS__PUSHGATEWAY=f"http://{gateway.address}")
        assert by_setting.code == 0, by_setting
    assert not file.exists()
    assert gateway.seen == []


BEFORE = """# HELP askfirst_agent_runs_total Runs of agents by how they ended.
# TYPE askfirst_agent_runs_total counter
askfirst_agent_runs_total{agent="a",outcome="failed"} 3.0
askfirst_agent_runs_total{agent="gone",outcome="failed"} 9.0
# HELP askfirst_proposals_late x
# TYPE askfirst_proposals_late gauge
askfirst_proposals_late 7.0
"""
AFTER = (
    BEFORE.replace("3.0", "1.0")
    .replace("7.0", "2.0")
    .replace('askfirst_agent_runs_total{agent="gone",outcome="failed"} 9.0\n', "")
)


def test_counters_go_on_gauges_do_not_and_what_does_not_happen_any_more_stays_counted() -> None:
    found = samples(counted_on(AFTER, BEFORE))
    assert found == {
        'askfirst_agent_runs_total{agent="a",outcome="failed"}': 4.0,
        'askfirst_agent_runs_total{agent="gone",outcome="failed"}': 9.0,
        "askfirst_proposals_late": 2.0,
    }
    late = "askfirst_proposals_late"
    nothing_yet = f"# HELP {late} x\n# TYPE {late} gauge\n{late} 2.0\n"
    assert (
        samples(counted_on(nothing_yet, BEFORE)).items()
        >= {
            'askfirst_agent_runs_total{agent="gone",outcome="failed"}': 9.0,
            "askfirst_proposals_late": 2.0,
        }.items()
    )


@pytest.mark.parametrize(
    "before", ["", "garbage", "a b c\n", "# TYPE x counter\nx{ 1\n", BEFORE.replace("3.0", "many"), "\x00"]
)
def test_the_counting_begins_where_the_file_cannot_be_read(before: str) -> None:
    assert samples(counted_on(AFTER, before)) == samples(AFTER)


def test_a_histogram_goes_on_only_with_the_buckets_that_it_has_today() -> None:
    name = "askfirst_agent_run_duration_seconds"
    bounds = [*METRICS[name].buckets, "+Inf"]

    def text(bounds: list[object], value: float) -> str:
        lines = [f'{name}_bucket{{le="{bound}"}} {value}' for bound in bounds]
        return "\n".join(
            [f"# HELP {name} x", f"# TYPE {name} histogram", *lines, f"{name}_count {value}", ""]
        )

    new = text(bounds, 1.0)
    assert samples(counted_on(new, text(bounds, 2.0)))[f"{name}_count"] == 3.0
    assert samples(counted_on(new, text([0.1, "+Inf"], 2.0))) == samples(new)


def test_a_file_is_never_half_written_and_a_draft_never_left(tmp_path: Path) -> None:
    file = tmp_path / "a.prom"
    write_file(file, BEFORE)
    assert file.read_text(encoding="utf-8") == BEFORE
    file.unlink()
    file.mkdir()
    with pytest.raises(DaemonError, match=r"cannot be written to .*a\.prom: Is a directory"):
        write_file(file, BEFORE)
    assert list(tmp_path.iterdir()) == [file]
    assert file_problem(file) == f"{file} is a folder"


def test_what_a_run_cannot_tell_is_left_out() -> None:
    name = "process_cpu_seconds_total"
    text = f"# HELP {name} x\n# TYPE {name} counter\n{name} 1.0\n"
    assert of_runs(text + BEFORE) == BEFORE
