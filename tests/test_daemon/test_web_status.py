"""The status page, rendered by a whole daemon over real stores; no browser is needed."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from daemon.app import Daemon
from daemon.errors import ExitCode, StoreFull
from daemon.observability.health import Health, Ping
from daemon.observability.metrics import Metrics
from daemon.scheduler import AgentScheduler
from daemon.settings import DaemonSettings, Settings, load_settings
from daemon.web.app import build_app
from daemon.web.assets import FILES, FOLDER, Assets
from daemon.web.facts import Facts, Gatherer
from daemon.web.ops import Operations
from daemon.web.server import WebServer
from daemon.web.status import REMEMBERED_S, StatusPage
from tests.support.lived_in import TITLES, World, configure, live_in
from tests.support.markup import Element, parsed

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u202e{{ 7*7 }}"
SECRET = "sk-abcdefghijklmnopqrstuvwxyz123456"


async def lived_in(folder: Path, world: World | None = None, *, more: str = "") -> Settings:
    """Settings of a daemon with a month of history, or of one without any agent."""

    def prepare() -> Settings:
        configure(folder, {} if world is None else None, more=more)
        (folder / "exchange").mkdir()
        for name in ("offers.csv", "needs.csv"):
            text = Path("config/examples", name).read_text(encoding="utf-8")
            (folder / "exchange" / name).write_text(text, encoding="utf-8")
        return load_settings(folder / "askfirst.toml")

    settings = await asyncio.to_thread(prepare)
    if world is not None:
        await live_in(folder / "data", world)
    return settings


@asynccontextmanager
async def daemon_of(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A browser's connection to a daemon; it must end with OK."""
    daemon = Daemon(settings)
    task = asyncio.create_task(daemon.run_until_stopped())
    ready = asyncio.create_task(daemon.ready.wait())
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    try:
        url = daemon.url or "http://nowhere.invalid"
        async with httpx.AsyncClient(base_url=url, trust_env=False, headers=BROWSER) as client:
            yield client
    finally:
        daemon.lifecycle.ask_to_stop("test")
        assert await task is ExitCode.OK


async def page_of(client: httpx.AsyncClient, path: str = "/") -> Element:
    """The page as a tree; it must be served well and be valid."""
    response = await client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    root, problems = parsed(response.text)
    assert problems == []
    return root


def numbers(page: Element, chart: str) -> list[list[float]]:
    """What the table of a chart holds, row by row."""
    body = page.one("section", id=f"chart-{chart}").one("tbody")
    return [[float(data.attributes["value"]) for data in row.all("data")] for row in body.all("tr")]


async def test_everything_a_person_wants_to_know_is_on_one_valid_page(tmp_path: Path) -> None:
    world = World(titles=TITLES, error="the shed is locked; find the key")
    settings = await lived_in(tmp_path, world)
    async with daemon_of(settings) as client:
        page = await page_of(client)
        assert page.one("h2", id="state-title").text == "Askfirst works, and something needs a look."
        assert page.one("title").text == "Needs a look – Askfirst"
        assert "repairs: the last run failed" in page.one("section", id="state").text

        waiting = page.one("section", id="waiting")
        assert [each.text for each in waiting.one("ol").all("strong")] == [
            title for titles in TITLES.values() for title in titles
        ]
        assert "askfirst proposals approve 1" in waiting.text

        agents = page.one("section", id="agents")
        rows = {
            row.one("th").all("span")[0].text: row for row in agents.one("tbody").all("tr") if row.all("th")
        }
        assert list(rows) == ["matchmaker", "pantry", "newsletter", "repairs"]
        assert [mark.text for mark in rows["newsletter"].all("span", class_="mark calm")] == ["paused"]
        assert "not planned" in rows["newsletter"].text
        assert [mark.text for mark in rows["repairs"].all("span", class_="mark bad")] == ["failed"]
        assert re.search(r"in \d+\smin", rows["pantry"].text)
        assert "on holiday until Monday" in agents.text
        assert "the shed is locked; find the key" in agents.text
        assert "every 2h" in rows["matchmaker"].text

        checks = page.one("section", id="health").one("tbody").all("tr")
        assert [row.one("th").all("span")[0].text for row in checks] == [
            "Records",
            "Schedule",
            "Disk",
            "Language model",
        ]
        assert "Version" in page.one("section", id="about").text
        links = {each.attributes["href"] for each in page.one("footer").all("a")}
        assert links == {"/metrics", "/healthz", "/readyz"}
        assert [each.text.split()[0] for each in page.one("ul", class_="budgets").all("strong")] == [
            "60000",
            "2",
        ]

        await compare_with_the_stores(client, tmp_path / "data")


async def compare_with_the_stores(client: httpx.AsyncClient, data: Path) -> None:
    """What is shown for 30 days is what the two databases hold."""
    page = await page_of(client, "/?days=30")
    runs, questions, tokens = (numbers(page, each) for each in ("runs", "questions", "tokens"))
    assert {len(runs), len(questions), len(tokens)} == {30}
    with sqlite3.connect(data / "askfirst.sqlite3") as db:
        query = "SELECT count(*), sum(outcome = 'succeeded'), sum(calls), sum(cached_calls) FROM runs"
        query += " WHERE date(started_at, 'localtime') > date('now', 'localtime', '-30 days')"
        (count, well, calls, cached) = db.execute(query).fetchone()
    db.close()
    assert (sum(map(sum, runs)), sum(row[0] for row in runs)) == (count, well)
    assert (sum(map(sum, questions)), sum(row[1] for row in questions)) == (calls, cached)
    with sqlite3.connect(data / "llm_usage.sqlite3") as db:
        query = "SELECT sum(tokens_in), sum(tokens_out) FROM calls"
        query += " WHERE date(at / 1000, 'unixepoch', 'localtime') > date('now', 'localtime', '-30 days')"
        (read, written) = db.execute(query).fetchone()
    db.close()
    assert [sum(row[i] for row in tokens) for i in range(2)] == [read, written]
    models = [row.one("th").text for row in page.one("section", id="models").one("tbody").all("tr")]
    assert models == ["qwen2.5:1.5b ollama", "gpt-5-mini large"]


async def test_a_browser_gets_the_page_for_the_days_it_asks_for_and_curl_gets_text(tmp_path: Path) -> None:
    async with daemon_of(await lived_in(tmp_path, World(titles={}, days=8))) as client:
        plain = await client.get("/", headers={"Accept": "*/*"})
        assert plain.headers["content-type"].startswith("text/plain")
        assert "/healthz" in plain.text
        for query, rows, current in (
            ("?days=7", 7, "7 days"),
            ("", 24, "24 hours"),
            ("?days=1", 24, "24 hours"),
            ("?days=99999999999999999999", 24, "24 hours"),
            ("?days=-7&days=<script>", 24, "24 hours"),
            ("?days=%F0%9D%9F%97", 24, "24 hours"),  # a digit that int() takes, and no number of ours
        ):
            page = await page_of(client, f"/{query}")
            assert len(numbers(page, "runs")) == rows
            assert page.one("a", aria_current="page").text == current
        response = await client.get("/")
        assert response.headers["vary"] == plain.headers["vary"] == "Accept"
        assert response.headers["cache-control"] == "no-store"
        policy = response.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert {"default-src 'none'", "require-trusted-types-for 'script'", "frame-ancestors 'none'"} <= set(
            policy.split("; ")
        )
        for method in ("POST", "PUT", "DELETE"):
            assert (await client.request(method, "/")).status_code == 405
        assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 421


async def test_a_new_installation_is_told_what_to_do(tmp_path: Path) -> None:
    settings = await lived_in(tmp_path)
    bare = settings.model_copy(update={"llm": settings.llm.model_copy(update={"budget": None})})
    async with daemon_of(bare) as client:
        page = await page_of(client)
    assert page.one("h2", id="state-title").text == "Everything works, and no agent is switched on yet."
    assert "Nothing waits for you." in page.one("section", id="waiting").text
    assert "[agents.matchmaker]" in page.one("section", id="agents").text
    assert str(tmp_path / "askfirst.toml") in page.one("section", id="agents").text
    assert page.one("div", id="quiet").text.startswith("No agent ran and no model was asked")
    assert "No limit is set." in page.one("section", id="limits").text


async def test_texts_of_agents_and_models_are_only_text_and_hold_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GARDEN_API_KEY", "the gate's own code")
    titles = {"pantry": (HOSTILE, f"Use the key {SECRET} of the gate: the gate's own code")}
    world = World(titles=titles, error=f"no such file: {HOSTILE}", model=HOSTILE, days=3)
    async with daemon_of(await lived_in(tmp_path, world)) as client:
        text = (await client.get("/?days=7")).text
        page = await page_of(client, "/?days=7")
    assert [len(page.all(tag)) for tag in ("script", "img", "iframe", "style")] == [2, 1, 0, 0]
    shown = page.one("section", id="waiting").all("strong")[0].text
    assert shown == HOSTILE.replace("\u202e", "\\u202e")
    assert HOSTILE.replace("\u202e", "\\u202e") in page.one("section", id="agents").text
    assert page.one("section", id="models").one("tbody").all("th")[0].text.startswith("<script>alert(1)")
    assert SECRET not in text
    assert "the gate's own code" not in text.replace("&#39;", "'")
    assert page.one("section", id="waiting").text.count("[redacted]") == 2


async def test_parts_that_fail_say_so_and_the_page_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    async with daemon_of(await lived_in(tmp_path, World(titles=TITLES, days=3))) as client:
        await page_of(client)
        # The database loses a table and the ledger becomes garbage while the daemon runs.
        db = sqlite3.connect(data / "askfirst.sqlite3")
        db.execute("ALTER TABLE proposals RENAME TO gone")
        db.close()
        for each in data.glob("llm_usage.sqlite3*"):
            each.unlink()
        (data / "llm_usage.sqlite3").write_bytes(b"garbage" * 1000)
        broken = await page_of(client, "/?days=7")
        assert broken.one("h2", id="state-title").text == "Something that Askfirst needs does not work."
        assert "Records: " in broken.one("section", id="state").text
        assert "What waits cannot be shown now:" in broken.one("section", id="waiting").text
        assert "askfirst doctor" in broken.one("section", id="health").text
        assert "cannot be read" in broken.one("section", id="chart-tokens").text
        assert numbers(broken, "runs")  # what can be read is shown
        assert (await client.get("/readyz")).status_code == 503
        await page_of(client, "/?days=30")
        db = sqlite3.connect(data / "askfirst.sqlite3")
        db.execute("ALTER TABLE gone RENAME TO proposals")
        db.close()
    said = capfd.readouterr().err
    assert said.count("the status page cannot show what waits for a decision") == 1


@asynccontextmanager
async def waiting_for_room(folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, CountingGatherer]]:
    """The endpoints as they are while the start waits for room on the disk: nothing else is open."""

    async def storage() -> str:
        msg = "storage full: only 1.0 MiB are free"
        raise StoreFull(msg)

    settings = Settings(daemon=DaemonSettings(data_dir=folder / "data"))
    operations = Operations(metrics=Metrics(), health=Health([Ping("storage", storage)]), version="1.2.3")
    gatherer = CountingGatherer(AgentScheduler(settings=settings), settings, operations)
    assets = Assets()
    operations.page = StatusPage(gatherer, assets).show
    server = WebServer("127.0.0.1", 0)
    await server.start(build_app(operations, assets=assets))
    try:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, headers=BROWSER) as client:
            yield client, gatherer
    finally:
        await server.aclose()


class CountingGatherer(Gatherer):
    """Counts how often everything was looked up."""

    count = 0

    async def gather(self, days: int) -> Facts:
        self.count += 1
        return await super().gather(days)


async def test_the_page_is_there_while_the_start_waits_for_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").mkdir()
    async with waiting_for_room(tmp_path) as (client, _):
        page = await page_of(client)
    assert caplog.messages == []
    assert "not known yet" in page.one("section", id="state").text
    assert page.one("h2", id="state-title").text == "Something that Askfirst needs does not work."
    assert "Disk: storage full" in page.one("section", id="state").text
    assert "Agents go on by themselves as soon as there is room." in page.one("section", id="health").text
    assert "the database is not open" in page.one("section", id="waiting").text
    assert "1.2.3" in page.one("section", id="about").text


async def test_reloading_costs_next_to_nothing(tmp_path: Path) -> None:
    async with waiting_for_room(tmp_path) as (client, gatherer):
        pages = await asyncio.gather(*(client.get("/") for _ in range(40)))
        assert len({page.content for page in pages}) <= 1 + pages[-1].elapsed.total_seconds() / REMEMBERED_S
        assert gatherer.count == len({page.content for page in pages})
        await client.get("/?days=7")
        assert gatherer.count <= 3


async def test_files_are_served_under_names_of_their_content_and_nothing_else_is(tmp_path: Path) -> None:
    async with waiting_for_room(tmp_path) as (client, _):
        page = await page_of(client)
        addresses = [each.attributes["src"] for each in page.all("script")]
        addresses += [each.attributes["href"] for each in page.all("link")]
        assert len(addresses) == len(FILES)
        for address in addresses:
            response = await client.get(address)
            assert response.status_code == 200
            assert response.headers["content-type"] in FILES.values()
            assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["content-security-policy"].startswith("default-src 'none'")
            assert (await client.post(address)).status_code == 405
        script = next(address for address in addresses if "/status." in address)
        for path in (
            "/static/",
            "/static/status.js",
            "/static/VENDORED.md",
            "/static/vendor/uPlot.LICENSE",
            "/static/../templates/status.html",
            "/static/..%2ftemplates%2fstatus.html",
            "/static/%2e%2e/%2e%2e/status.py",
            "/static//etc/passwd",
            f"{script}/..",
            f"{script}%00",
        ):
            request = httpx.Request("GET", client.base_url, headers=BROWSER)
            request.url = httpx.URL(f"{client.base_url}").copy_with(raw_path=path.encode())
            assert (await client.send(request)).status_code == 404, path


def test_what_is_vendored_is_unchanged_and_carries_its_licence() -> None:
    import hashlib

    vendor = FOLDER / "vendor"
    table = (vendor / "VENDORED.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|.*\| MIT, `([^`]+)` \| `([0-9a-f]{64})` \|$", table, re.MULTILINE)
    assert {name for name, _, _ in rows} == {each.name for each in vendor.iterdir()} - {
        "VENDORED.md",
        "uPlot.LICENSE",
    }
    for name, licence, digest in rows:
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest
        assert "MIT License" in (vendor / licence).read_text(encoding="utf-8")


@pytest.mark.usefixtures("untraced")  # coverage itself loads some of these
def test_no_template_engine_is_loaded_before_the_page_is_asked_for() -> None:
    code = "import sys, daemon.serving, daemon.web.app, daemon.web.status\n"
    code += "print(sorted({'jinja2', 'markupsafe', 'daemon.web.view', 'sqlite3'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


PAIRS = (
    *[(front, "--card") for front in ("--text", "--muted", "--link", "--good", "--warn", "--bad", "--calm")],
    *[(front, "--ground") for front in ("--text", "--muted", "--link")],
    *[(f"--{tone}", f"--{tone}-ground") for tone in ("good", "warn", "bad", "calm")],
    ("--text", "--code"),
    ("--muted", "--code"),
)
SHAPES = [(f"--fill-{name}", "--card") for name in ("good", "bad", "calm", "one", "two")]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_are_told_apart_as_wcag_asks(scheme: int) -> None:
    css = (FOLDER / "status.css").read_text(encoding="utf-8")
    blocks = [dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6})", block)) for block in css.split(":root {")[1:3]]
    colours = blocks[0] | blocks[scheme]
    low = {pair: contrast(*(colours[each] for each in pair)) for pair in PAIRS}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}
    low = {pair: contrast(*(colours[each] for each in pair)) for pair in [*SHAPES, ("--focus", "--ground")]}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 3} == {}


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2 between two colours."""

    def light(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted(map(light, (one, other)))
    return (bright + 0.05) / (dark + 0.05)
