"""A real Prometheus and a real Alertmanager on loopback, and a receiver that keeps what it is told."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.prometheus import tool
from tests.support.waiting import seen_now

JOB = "askfirst"

CONFIGURATION = """
global: {{scrape_interval: {interval}, scrape_timeout: {interval}, evaluation_interval: {interval}}}
rule_files: {rules}
alerting:
  alertmanagers: [{{static_configs: [{{targets: {alertmanagers}}}]}}]
scrape_configs:
  - job_name: {job}
    file_sd_configs: [{{files: [targets.json], refresh_interval: 1s}}]
"""


def free_port() -> int:
    """A port of loopback that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Prometheus:
    """A Prometheus that runs.

    Attributes:
        folder: its configuration and data.
        address: host and port.
    """

    folder: Path
    address: str

    def targets(self, *addresses: str) -> None:
        """Scrape these from now on; it is noticed within moments."""
        draft = self.folder / "targets.new"
        draft.write_text(json.dumps([{"targets": list(addresses)}]))
        draft.rename(self.folder / "targets.json")

    def api(self, path: str, **parameters: str) -> Any:
        """What its API answers: the part `data`.

        Raises:
            AssertionError: it refused; the message is its own.
        """
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            msg = f"{path} {parameters}: {error.read().decode()}"
            raise AssertionError(msg) from None

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        data = self.api("query", query=expr)
        return list(data["result"]) if data["resultType"] == "vector" else [{"value": data["result"]}]

    def value(self, expr: str) -> float | None:
        """The value of the expression's only series; None where it has none."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def firing(self, name: str, labels: Mapping[str, str] | None = None) -> bool:
        """Whether the alarm fires, for something with those labels."""
        wanted = {"alertname": name, **(labels or {})}.items()
        alerts = self.api("alerts")["alerts"]
        return any(wanted <= alert["labels"].items() and alert["state"] == "firing" for alert in alerts)


@contextmanager
def prometheus(
    folder: Path, *addresses: str, rules: str = "", alertmanager: str = "", interval: str = "500ms"
) -> Iterator[Prometheus]:
    """Prometheus, ready to be asked; ended at the end.

    Args:
        folder: an empty folder.
        addresses: what it scrapes, as the job `JOB`.
        rules: the text of its rules.
        alertmanager: host and port of the Alertmanager that it tells.
        interval: between two scrapes, and between two looks at the rules.
    """
    folder.mkdir(exist_ok=True)
    found = Prometheus(folder, f"127.0.0.1:{free_port()}")
    found.targets(*addresses)
    (folder / "rules.yml").write_text(rules or "groups: []")
    alertmanagers = json.dumps([alertmanager] if alertmanager else [])
    text = CONFIGURATION.format(
        interval=interval, rules='["rules.yml"]', alertmanagers=alertmanagers, job=JOB
    )
    (folder / "prometheus.yml").write_text(text)
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={found.address}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    with _served(command, folder / "prometheus.log", f"http://{found.address}/-/ready"):
        yield found


@contextmanager
def alertmanager(folder: Path, configuration: str) -> Iterator[str]:
    """The Alertmanager, ready to be told; its host and port."""
    folder.mkdir(exist_ok=True)
    (folder / "alertmanager.yml").write_text(configuration)
    address = f"127.0.0.1:{free_port()}"
    command = [
        tool("prometheus-alertmanager"),
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
        "--log.level=warn",
    ]
    with _served(command, folder / "alertmanager.log", f"http://{address}/-/ready"):
        yield address


@contextmanager
def _served(command: list[str], log: Path, ready: str) -> Iterator[None]:
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:
            seen_now(lambda: process.poll() is not None or _answers(ready))
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@dataclass
class Receiver:
    """What an Alertmanager's webhook was told.

    Attributes:
        url: where to tell it.
        told: each alert as it came, oldest first.
    """

    url: str
    told: list[dict[str, Any]] = field(default_factory=list)

    def alerts(self, name: str, status: str, labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Those of that alarm and status (`firing`, `resolved`), with at least those labels."""
        wanted = {"alertname": name, **(labels or {})}.items()
        told = [alert for alert in tuple(self.told) if alert["status"] == status]
        return [alert for alert in told if wanted <= alert["labels"].items()]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A webhook on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.told.extend(body["alerts"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Receiver(f"http://127.0.0.1:{server.server_address[1]}/")
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield found
        finally:
            server.shutdown()
