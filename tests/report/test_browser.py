"""The report in a real Chromium without a window: it renders, it can be used, nothing leaves it, and axe finds no serious fault."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from made_run import make_run, some_words

from sparring.data.tables import read_rows
from sparring.report.run_page import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
pytest.importorskip("axe_core_python", reason="axe checks the page")
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with a chromedriver here (Debian: chromium, chromium-driver)"),
]

AT_ONCE = 10
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">\u202e{{7*7}}"


def reply(row: int, player: int) -> str:
    """Row 3 is hostile, and "harbour" is in the prompt of row 7 alone."""
    if row == 3:
        return HOSTILE
    words = some_words(row, player).replace("harbour", "station")
    return f"{words} harbour" if (row, player) == (7, -2) else words


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("browser") / "run", rows=30, text=reply))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(120)  # axe looks at everything
    yield driver
    driver.quit()


class Page:
    """The report, loaded."""

    def __init__(self, chromium: Any, url: str, width: int = 1200, dark: bool = False) -> None:
        self.chromium = chromium
        chromium.get_log("browser"), chromium.get_log("performance")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        chromium.get("about:blank")  # an address that differs in its fragment alone would load nothing
        chromium.get(url)
        self.wait("document.getElementById('sample-count').textContent !== ''")

    def js(self, script: str, *arguments: Any) -> Any:
        return self.chromium.execute_script(f"return {script}", *arguments)

    def wait(self, condition: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.chromium, 20, 0.05).until(lambda _: self.js(condition))

    def choose(self, control: str, value: str) -> None:
        script = """
          const control = document.getElementById(`sample-${arguments[0]}`);
          control.value = arguments[1];
          control.dispatchEvent(new Event(control.type === 'search' ? 'input' : 'change'));
        """
        self.chromium.execute_script(script, control, value)

    @property
    def shown(self) -> list[int]:
        """Numbers of the rows whose cards are on the page."""
        return self.js("[...document.querySelectorAll('#sample-cards > article')].map((card) => parseInt(card.id.slice(5), 16))")

    @property
    def count(self) -> str:
        return self.js("document.getElementById('sample-count').textContent")


@pytest.fixture
def loaded(chromium: Any, page: Path) -> Page:
    return Page(chromium, page.as_uri())


def console(chromium: Any) -> list[dict[str, Any]]:
    return chromium.get_log("browser")


def requests(chromium: Any) -> set[str]:
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    return {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}


def test_from_disk_it_renders_without_an_error_or_a_request(chromium: Any, page: Path) -> None:
    loaded = Page(chromium, page.as_uri())
    assert len(loaded.shown) == AT_ONCE and loaded.count == f"30 of 30 samples, {AT_ONCE} on the page."
    assert console(chromium) == []
    assert {url for url in requests(chromium) if not url.startswith("data:")} == {page.as_uri()}
    assert loaded.js("getComputedStyle(document.body).maxWidth") != "none", "the policy lets the style in"


def test_through_a_static_host_it_asks_for_nothing_more(chromium: Any, page: Path) -> None:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=page.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        loaded = Page(chromium, f"http://127.0.0.1:{server.server_port}/{page.name}")
        assert len(loaded.shown) == AT_ONCE and asked == [f"/{page.name}"] and console(chromium) == []
        server.shutdown()


def test_every_plot_has_visible_marks(loaded: Page) -> None:
    plots = loaded.js(
        """[...document.querySelectorAll('svg.plot')].map((svg) => {
          const paper = getComputedStyle(document.body).backgroundColor;
          const coloured = [...svg.querySelectorAll('[style*="var(--"]')];
          const marks = coloured.filter((mark) => /var\\(--s[0-9]\\)/.test(mark.getAttribute('style')));
          const seen = marks.filter((mark) => {
            const box = mark.getBoundingClientRect(), style = getComputedStyle(mark);
            const visible = [style.stroke, style.fill].some((colour) => colour.startsWith('rgb(') && colour !== paper);
            return visible && Math.max(box.width, box.height) > 2;
          });
          const box = svg.getBoundingClientRect();
          return [svg.getAttribute('aria-label'), seen.length, box.width, box.height];
        })"""
    )
    assert len(plots) == 15
    assert [title for title, marks, width, height in plots if marks < 1 or width < 200 or height < 100] == []


def test_a_pointer_that_rests_on_a_mark_meets_what_it_is_told(loaded: Page) -> None:
    """Chromium shows the <title> of the element under the pointer; the drawing of that bubble is its own."""
    told = loaded.js(
        """[...document.querySelectorAll('svg.plot')].map((svg) => {
          const marks = [...svg.querySelectorAll('title')].map((title) => title.parentElement).filter((one) => one !== svg);
          const hit = marks.filter((mark) => {
            mark.scrollIntoView({block: 'center'});
            const box = mark.getBoundingClientRect();
            const met = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
            return mark.contains(met);
          });
          return [svg.getAttribute('aria-label'), marks.length, hit.length];
        })"""
    )
    assert [title for title, marks, hit in told if marks == 0 or hit < marks / 2] == [], "some lie below others"


def test_search_goes_over_prompts_and_replies(loaded: Page) -> None:
    loaded.choose("search", "HARBOUR")
    assert loaded.shown == [7] and loaded.count == "1 of 30 samples, 1 on the page."
    loaded.choose("search", "no such words")
    assert loaded.shown == [] and loaded.count.startswith("0 of 30")
    loaded.choose("search", "")
    assert len(loaded.shown) == AT_ONCE


def test_filters(loaded: Page, page: Path) -> None:
    assert loaded.js("document.getElementById('sample-player').value") == "2", "iteration 1 is the best one"
    expected = {
        "improved": [row for row in range(30) if row % 3],
        "worse": [row for row in range(30) if row % 3 == 0],
        "truncated": [row for row in range(30) if (row + 2) % 5 == 0],
        "identical": [row for row in range(30) if row % 6 == 5],
        "right": [row for row in range(30) if row % 4 < 2],
        "wrong": [],
    }
    for name, rows in expected.items():
        loaded.choose("filter", name)
        assert loaded.shown == rows[:AT_ONCE] and loaded.count.startswith(f"{len(rows)} of 30"), name
    loaded.choose("filter", "longest")
    lengths = [row["reply_tokens"] for row in read_rows(page.parent / "iterations/001/evaluate/samples.parquet")]
    assert loaded.shown == [row for row, length in enumerate(lengths) if length >= sorted(lengths)[-3]], "three of thirty, and ties"
    loaded.choose("filter", "truncated")
    loaded.choose("player", "1")
    assert loaded.shown == [row for row in range(30) if (row + 1) % 5 == 0], "of the model that is looked at"


def test_sorting_by_margin_change(loaded: Page) -> None:
    def margins() -> list[float]:
        texts = loaded.js("[...document.querySelectorAll('#sample-cards .replies > :nth-child(4) .facts')].map((one) => one.textContent)")
        return [float(text.partition("margin change ")[2].split()[0]) for text in texts]

    loaded.choose("sort", "margin-down")
    assert margins() == sorted(margins(), reverse=True)
    loaded.choose("sort", "margin-up")
    assert margins() == sorted(margins()) and len(margins()) == AT_ONCE


def test_more_samples_on_demand(loaded: Page) -> None:
    loaded.js("document.getElementById('sample-more').click()")
    assert loaded.shown == list(range(2 * AT_ONCE))
    loaded.js("document.getElementById('sample-more').click()")
    assert loaded.shown == list(range(30)) and loaded.js("document.getElementById('sample-more').hidden")


def test_a_link_leads_to_one_sample(chromium: Any, page: Path) -> None:
    loaded = Page(chromium, f"{page.as_uri()}#sample-0019")
    assert loaded.shown == [25] and loaded.count.startswith("One linked sample.")
    loaded.js("document.querySelector('#sample-count a').click()")
    loaded.wait("document.querySelectorAll('#sample-cards > article').length === 10")
    loaded.js("document.querySelector('#card-0004 .facts a[href]').click()")
    loaded.wait("location.hash === '#sample-0004' && document.querySelectorAll('#sample-cards > article').length === 1")
    loaded.choose("filter", "all")
    assert len(loaded.shown) == AT_ONCE, "a control leads back from the one sample"


def test_words_that_differ_are_marked(loaded: Page) -> None:
    box = "document.querySelector('#card-0000 .replies > :nth-child(4) .text')"
    words = {tag: loaded.js(f"{box}.querySelectorAll('{tag}').length") for tag in ("ins", "del")}
    without = {
        tag: loaded.js(f"[...{box}.childNodes].filter((one) => one.tagName !== '{tag}').map((one) => one.textContent).join('')")
        for tag in ("DEL", "INS")
    }
    assert without["DEL"] == reply(0, 2) and without["INS"].split() == reply(0, -1).split() and words["ins"] and words["del"]
    loaded.choose("words", "no")
    assert loaded.js(f"{box}.children.length") == 0 and loaded.js(f"{box}.textContent") == reply(0, 2)


def test_hostile_text_is_text(loaded: Page) -> None:
    assert loaded.js("document.title") == "sparring: run"
    assert loaded.js("document.querySelectorAll('img').length") == 0
    loaded.choose("words", "no")
    shown = loaded.js("document.querySelector('#card-0003 .replies > :nth-child(2) .text').textContent")
    assert shown == HOSTILE.replace("\u202e", "[U+202E]")


def test_the_keyboard_reaches_every_control(loaded: Page) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    body = loaded.chromium.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert loaded.js("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(45):
        loaded.chromium.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(loaded.js("document.activeElement.id"))
    assert {"sample-search", "sample-player", "sample-filter", "sample-sort", "sample-words"} <= reached


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 820, 1400])
def test_nothing_runs_over(chromium: Any, page: Path, width: int, dark: bool) -> None:
    assert Page(chromium, page.as_uri(), width, dark).js("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1400, False)])
def test_axe_finds_no_serious_fault(chromium: Any, page: Path, width: int, dark: bool) -> None:
    """Colours depend on the theme alone, and the places of controls on the width: every theme and the extreme widths are looked at once."""
    Page(chromium, page.as_uri(), width, dark)
    chromium.execute_script(resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = chromium.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert len(found["passes"]) > 20, "axe has looked"
    bad = [
        (one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found["violations"] if one["impact"] in ("serious", "critical")
    ]
    assert bad == []


def test_it_prints_what_is_on_the_page(loaded: Page) -> None:
    loaded.chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert loaded.js("getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert loaded.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(loaded.chromium.print_page()) > 10_000
