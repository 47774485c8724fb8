"""The pages in a real browser: nothing fails or is fetched, and every reader can read them."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_case import compared_runs, lab_content
from run_files import ROOT, write_run

from paramgolf.experiments.lab.summary import summarize
from paramgolf.report.comparison import render_comparison
from paramgolf.report.inputs import load_inputs
from paramgolf.report.lab import render_lab_page
from paramgolf.report.page import draw, render

pytestmark = pytest.mark.browser
BROWSERS = ("chromium", "google-chrome")
OPTIONS = (  # without a sandbox for root; and nothing that Chromium does for itself
    "headless=new no-sandbox disable-gpu hide-scrollbars no-first-run disable-sync "
    "disable-background-networking disable-component-update force-device-scale-factor=1"
)
PHONE, DESK = (400, 800), (1600, 900)
PAPER = (718, 1047)  # A4 in CSS pixels, less margins of a centimeter
SMALLEST, IN_DRAWINGS = 12, 8  # CSS pixels of a letter
PICTURE = (1180, 690)  # of the README
MADE = ROOT / "artifacts/report/index.html"

UNREADABLE = """
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
while (texts.nextNode()) {
  const text = texts.currentNode.textContent.trim(), parent = texts.currentNode.parentElement;
  if (!text || !parent.checkVisibility()) continue;
  const svg = parent.closest("svg"), size = parseFloat(getComputedStyle(parent).fontSize);
  const scale = svg ? svg.clientWidth / svg.viewBox.baseVal.width : 1;
  if (size * scale < arguments[svg ? 1 : 0]) found.push(`${text}: ${size * scale}`);
}
return found;
"""
WIDER_THAN_ITS_PLACE = """
const places = [document.documentElement, ...document.querySelectorAll(".scroll")];
return places.filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText.slice(0, 80));
"""
COLORS = """
const body = getComputedStyle(document.body), text = document.querySelector("svg text");
return [body.backgroundColor, body.color, text && getComputedStyle(text).fill];
"""


class Browser:
    """Chromium, with what is asked of it through its DevTools protocol."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.run = driver.execute_script

    def tell(self, command: str, **arguments: Any) -> dict[str, Any]:
        return self.driver.execute_cdp_cmd(command, arguments)

    def view(self, size: tuple[int, int], *, media: str = "", scheme: str = "light") -> None:
        """Set the window's inner size, and what style sheets ask for."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.tell("Emulation.setDeviceMetricsOverride", **metrics)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", media=media, features=wanted)

    def colors(self) -> list[int | None]:
        """Return how bright background, text and letters of a drawing are, 0 to 765."""
        found = self.run(COLORS)
        return [c and sum(map(int, re.findall(r"\d+", c)[:3])) for c in found]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    service = shutil.which("chromedriver")
    if program is None or service is None:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in OPTIONS.split():
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(service)) as driver:
        yield Browser(driver)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write each kind of page, of what was made up."""
    folder = tmp_path_factory.mktemp("pages")
    write_run(folder / "project")
    inputs = load_inputs(folder / "project")
    texts = {
        "run": render(inputs, draw(inputs)),
        "comparison": render_comparison(compared_runs(), {"late": "`dvc repro` it"}),
        "lab": render_lab_page(summarize(lab_content(), "tiny")),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(params=["run", "comparison", "lab"])
def page(request: pytest.FixtureRequest, browser: Browser, pages: dict[str, Path]) -> Path:
    """A page, open."""
    for log in ("browser", "performance"):
        browser.driver.get_log(log)  # what is of the page before
    path = pages[request.param]
    browser.view(DESK)
    browser.driver.get(path.as_uri())
    return path


def test_nothing_fails_and_nothing_is_fetched(browser, page):
    browser.run("for (const e of document.querySelectorAll('details')) e.open = true")
    messages = [json.loads(e["message"])["message"] for e in browser.driver.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {r["request"]["url"] for r in requests} == {page.as_uri()}
    assert browser.driver.get_log("browser") == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_it_can_be_read_at_any_width(browser, page, size):
    """No letter is small, the page does not move sideways, and no line is too long to follow."""
    browser.view(size)
    browser.run("for (const e of document.querySelectorAll('details')) e.open = true")
    assert browser.run("return document.documentElement.scrollWidth") <= size[0]
    assert browser.run(UNREADABLE, SMALLEST, IN_DRAWINGS) == []
    widths = browser.run("return [...document.querySelectorAll('p')].map(e => e.clientWidth)")
    assert max(widths) < 800


def test_dark_where_the_reader_wants_it_dark(browser, page):
    for scheme, is_dark in (("light", False), ("dark", True)):
        browser.view(DESK, scheme=scheme)
        background, *letters = browser.colors()
        for letter in letters:
            assert (letter > background) == is_dark
            assert abs(letter - background) > 250


def test_those_who_cannot_see_hear_what_the_drawings_say(browser, page):
    nodes = browser.tell("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node["ignored"]]
    drawings = [node["name"]["value"] for node in shown if node["role"]["value"] == "image"]
    assert len(drawings) == browser.run("return document.querySelectorAll('svg').length") > 0
    assert all(len(words.split()) > 3 for words in drawings)
    headings = [node for node in shown if node["role"]["value"] == "heading"]
    assert len(headings) > 2
    assert browser.run("return document.documentElement.lang") == "en"


def test_paper_is_white_and_cuts_nothing_off(browser, page):
    browser.view(PAPER, media="print", scheme="dark")
    background, *letters = browser.colors()
    assert background == 3 * 255
    assert all(letter < 450 for letter in letters)
    assert browser.run(WIDER_THAN_ITS_PLACE) == []
    printed = base64.b64decode(browser.tell("Page.printToPDF")["data"])
    assert printed.startswith(b"%PDF")


def test_the_readme_shows_the_top_of_a_report(browser, pages, pytestconfig, tmp_path):
    """`pytest -m browser --picture=docs/report.png tests` makes it, of the run in artifacts/."""
    wanted = pytestconfig.getoption("picture")
    assert not wanted or MADE.is_file(), "`make repro` first"
    browser.view(PICTURE)
    browser.driver.get((MADE if wanted else pages["run"]).as_uri())
    top = browser.run("return document.querySelector('figure').getBoundingClientRect().top")
    assert 0 < top < PICTURE[1]
    path = Path(wanted or tmp_path / "report.png")
    assert browser.driver.save_screenshot(str(path))
    sizes = {png[16:24] for png in (path.read_bytes(), (ROOT / "docs/report.png").read_bytes())}
    assert sizes == {b"".join(side.to_bytes(4, "big") for side in PICTURE)}
