"""The status page of the real program in a real browser: one program and one browser for all of it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.background import Running, running
from tests.support.browser import browser, program
from tests.support.lived_in import World, configure, live_in
from tests.support.program import Program
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 2'>",
    "</strong></main><iframe srcdoc='<script>top.harmed = 3</script>'></iframe><svg onload='harmed = 4'>",
    "javascript:harmed=5 {{ 7*7 }} ${harmed=6}",
)
CHARTS = ("runs", "questions", "tokens", "seconds", "cost")
EXAMPLES = Path(__file__).parents[2] / "config" / "examples"

OPEN_DOORS = (
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
    "--disable-features=LocalNetworkAccessChecks",
)
"""A browser that would let another site in: what keeps it out is ours."""

WATCH = """
window.refused = [];
document.addEventListener("securitypolicyviolation", (event) => refused.push(event.violatedDirective));
"""

PAINTED = """(id) => {
  const canvas = document.querySelector(`#chart-${id} canvas`);
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let n = 0; n < pixels.length; n += 4) if (pixels[n + 3]) colours.add(pixels.slice(n, n + 3).join());
  return { colours: [...colours], width: canvas.clientWidth, height: canvas.clientHeight };
}"""


@dataclass
class Site:
    """The running program and the browser."""

    daemon: Running
    url: str
    chromium: Any

    @contextmanager
    def page(self, path: str = "/?days=7", **context: Any) -> Iterator[Visit]:
        """A page in a window of its own; at its end nothing must have been refused or complained about."""
        window = self.chromium.new_context(**context)
        page = window.new_page()
        visit = Visit(page)
        page.add_init_script(WATCH)
        page.on("console", lambda message: visit.complaints.append(message.text))
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        page.on("request", lambda request: visit.asked.append(request.url))
        if context.get("java_script_enabled", True):
            page.clock.install()
        page.goto(self.url + path)
        yield visit
        assert visit.complaints == []
        assert [url for url in visit.asked if not url.startswith(self.url)] == []
        if context.get("java_script_enabled", True):
            assert page.evaluate("[window.refused, window.harmed]") == [[], None]
        window.close()


@dataclass
class Visit:
    """A page and what happened to it."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def refreshes(self) -> int:
        """How often the page was asked for again."""
        return sum("/static/" not in url for url in self.asked) - 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    program()  # skips before anything is started
    folder = tmp_path_factory.mktemp("site")
    configure(folder)
    shutil.copytree(EXAMPLES, folder / "exchange")
    world = World(titles={"pantry": HOSTILE}, error=HOSTILE[2], model=HOSTILE[1], days=8)
    asyncio.run(live_in(folder / "data", world))
    with (
        running(folder) as daemon,
        browser(*OPEN_DOORS) as chromium,
    ):
        yield Site(daemon, daemon.line("askfirst is running")["address"], chromium)


def test_charts_are_drawn_without_a_complaint_and_the_tables_fold_away(site: Site) -> None:
    with site.page(viewport={"width": 1180, "height": 900}, color_scheme="light") as visit:
        page = visit.page
        light = {chart: page.evaluate(PAINTED, chart) for chart in CHARTS}
        for chart, found in light.items():
            assert len(found["colours"]) > 3, chart
            assert found["width"] > 300, chart
            assert page.locator(f"#chart-{chart} .plot").get_attribute("aria-label").startswith("Chart")
            assert not page.locator(f"#chart-{chart} table").is_visible()
        page.locator("#chart-runs summary").click()
        assert page.locator("#chart-runs table").is_visible()
        page.locator("#chart-tokens .u-over").hover()
        row = page.locator("#chart-tokens .readout").text_content()
        assert " read, " in row
        assert row.endswith(" written")
        # The same page in the dark: other colours, drawn anew at once.
        ground = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(ground)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(ground) != before
        assert page.evaluate(PAINTED, "runs")["colours"] != light["runs"]["colours"]
        # And on another day's link, with the keyboard.
        page.get_by_role("link", name="30 days").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/?days=30#activity")
        assert page.locator("#chart-runs tbody tr").count() == 30


def test_without_javascript_the_tables_are_there(site: Site) -> None:
    with site.page(java_script_enabled=False) as visit:
        for chart in CHARTS:
            assert visit.page.locator(f"#chart-{chart} table").is_visible()
            assert visit.page.locator(f"#chart-{chart} tbody tr").count() == 7
            assert not visit.page.locator(f"#chart-{chart} .plot").is_visible()


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
def test_a_phone_needs_no_scrolling_sideways(site: Site, script: bool) -> None:
    with site.page(viewport={"width": 375, "height": 700}, java_script_enabled=script) as visit:
        wide = "document.documentElement.scrollWidth"
        assert visit.page.evaluate(wide) == 375
        if script:
            visit.page.set_viewport_size({"width": 320, "height": 700})
            visit.page.wait_for_function("document.querySelector('#chart-runs canvas').clientWidth < 290")
            assert visit.page.evaluate(wide) == 320
            for summary in visit.page.locator("summary").all():
                summary.click()
            assert visit.page.evaluate(wide) == 320


def test_hostile_texts_are_inert(site: Site) -> None:
    with site.page() as visit:
        titles = visit.page.locator("#waiting ol strong").all_text_contents()
        assert titles == list(HOSTILE)
        count = "[document.images.length, document.scripts.length, frames.length]"
        assert visit.page.evaluate(count) == [1, 2, 0]
        # Nor does anything that the page would do with a text become markup.
        sink = (
            "(text) => { try { document.body.innerHTML = text; return 'taken' } catch (e) { return e.name } }"
        )
        assert visit.page.evaluate(sink, HOSTILE[1]) == "TypeError"
        refused = visit.page.evaluate("window.refused.splice(0)")
        assert refused == ["require-trusted-types-for"]
        visit.complaints.clear()  # the browser tells of that refusal


def test_other_sites_can_neither_frame_it_nor_ask_under_their_name(site: Site) -> None:
    window = site.chromium.new_context()
    page = window.new_page()
    page.route(
        "http://other.example/",
        lambda route: route.fulfill(body=f'<iframe src="{site.url}/"></iframe>', content_type="text/html"),
    )
    page.goto("http://other.example/")  # comes back when the frame is loaded, too
    assert page.frames[-1].url == "chrome-error://chromewebdata/"
    assert page.frames[-1].locator("h1").filter(has_text="Askfirst").count() == 0
    port = site.url.rpartition(":")[2]
    answer = page.goto(f"http://evil.example:{port}/")
    assert answer.status == 421
    assert page.locator("h1").count() == 0
    window.close()


def ask(site: Site, *arguments: str) -> None:
    """A person types a command beside the daemon."""
    done = Program(site.daemon.folder).run(*arguments, "--config", "askfirst.toml")
    assert done.code == 0, done.err


def look_until(visit: Visit, shown: Callable[[], bool]) -> None:
    """Let the page's time pass until that is seen; the program remembers a page for some seconds."""
    end = time.monotonic() + LIMIT_S
    while not shown():
        assert time.monotonic() < end
        visit.page.clock.fast_forward(20_500)
        visit.page.wait_for_timeout(50)


def test_it_looks_by_itself_what_is_new_but_not_while_it_is_hidden(site: Site) -> None:
    with site.page("/?days=1", viewport={"width": 1180, "height": 900}) as visit:
        page = visit.page
        runs, tokens = page.locator("#chart-runs"), page.locator("#chart-tokens canvas").element_handle()
        runs.locator("summary").click()
        before = runs.locator(".summary").text_content()
        hour = page.locator("#chart-tokens tbody tr").last.text_content()
        ask(site, "agents", "run", "pantry")
        ask(site, "agents", "pause", "repairs", "--reason", "the shed is closed")
        look_until(visit, lambda: page.get_by_text("the shed is closed").count() > 0)
        look_until(visit, lambda: runs.locator(".summary").text_content() != before)
        assert len(page.evaluate(PAINTED, "runs")["colours"]) > 3
        assert runs.locator("table").is_visible()  # as it was left
        if page.locator("#chart-tokens tbody tr").last.text_content() == hour:
            assert tokens.evaluate("(canvas) => canvas.isConnected")  # what did not change was left alone
        assert page.locator(".uplot").count() == len(CHARTS)

        page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true, configurable: true })")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        asked = visit.refreshes()
        page.clock.fast_forward(600_000)
        assert visit.refreshes() == asked
        with page.expect_response(lambda response: "/static/" not in response.url):
            page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        assert page.locator("#news").text_content() == ""


def test_it_says_so_when_the_program_does_not_answer_any_more(site: Site) -> None:
    with site.page() as visit:
        visit.page.route("**/*", lambda route: route.abort())
        visit.page.clock.fast_forward(20_500)
        visit.page.get_by_text("Askfirst does not answer").wait_for()
        visit.complaints.clear()  # the browser tells of the failed request
