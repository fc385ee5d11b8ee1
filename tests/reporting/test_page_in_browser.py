"""The page as Chromium shows it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemminer.reporting.page import report, write
from tests.reporting.fakes import fake_checks, fake_layers, make_run
from tests.reporting.reader import HOSTILE

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed")
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", *quiet])
        yield chromium
        chromium.close()


def settle(page: Any, script: str, arg: Any = None, seconds: float = 20.0) -> None:
    """Wait until `script` is true. Playwright's wait_for_function has the page evaluate strings, which it forbids."""
    last = time.monotonic() + seconds
    while not page.evaluate(script, arg):
        assert time.monotonic() < last, f"never true: {script}"
        page.wait_for_timeout(20)


class Opened:
    """A page in Chromium, with all it complained of and asked for, and how long until its charts were drawn."""

    def __init__(self, browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=20_000)
        self.ms = self.page.evaluate("performance.getEntriesByName('ready')[0].startTime")

    def style(self, selector: str, name: str) -> str:
        script = "([s, n]) => getComputedStyle(document.querySelector(s)).getPropertyValue(n)"
        return str(self.page.evaluate(script, [selector, name]))

    def overflow(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@pytest.mark.alone
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "light"), (1200, "dark")])
def test_chromium_shows_every_chart_soon_and_asks_for_nothing(browser: Any, gem: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, gem, width, scheme)
    assert opened.complaints == []
    assert opened.requests == [gem.resolve().as_uri()]
    assert opened.page.locator(".chart").count() == 4
    for name in ("search", "training", "checks", "layers"):
        box = opened.page.locator(f"#{name} .main-svg").first.bounding_box()
        assert box["width"] > 0.75 * min(width, 900)
        assert box["x"] + box["width"] <= width
    assert opened.overflow() <= 0
    if opened.ms > 3000:  # once more: other work on the machine is not the page's fault
        opened.ms = Opened(browser, gem, width, scheme).ms
    assert opened.ms < 3000
    dark = opened.style("body", "background-color") == "rgb(19, 21, 25)"
    assert dark == (scheme == "dark")
    # tick labels: the muted colour of the scheme, so charts are readable on the page's own background
    label = opened.style("#search .xtick text", "fill")
    assert label == ("rgb(163, 170, 181)" if dark else "rgb(90, 96, 107)")
    opened.page.close()


def test_chromium_follows_the_scheme_hovers_and_prints(browser: Any, gem: Path) -> None:
    opened = Opened(browser, gem)
    page = opened.page
    page.locator("#layers").scroll_into_view_if_needed()
    box = page.locator("#layers .bars path").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2)
    page.wait_for_selector("#layers .hoverlayer .hovertext")
    assert "37 of 144 weights kept" in page.locator("#layers .hoverlayer").text_content()
    page.emulate_media(color_scheme="dark")
    settle(page, "getComputedStyle(document.querySelector('#search .xtick text')).fill == 'rgb(163, 170, 181)'")
    page.evaluate(
        """addEventListener("beforeprint", () => { window.printed = {
            folded: document.querySelectorAll("details:not([open])").length,
            background: getComputedStyle(document.body).backgroundColor,
            width: Math.max(...[...document.querySelectorAll(".main-svg")].map((s) => s.clientWidth)) }; })"""
    )
    assert page.pdf(format="A4")[:4] == b"%PDF"
    printed = page.evaluate("window.printed")
    assert printed["folded"] == 0
    assert printed["background"] == "rgb(255, 255, 255)"
    assert 500 < printed["width"] <= 688, "A4 less 14 mm on each side is 688 CSS pixels"
    assert opened.style("body", "background-color") == "rgb(19, 21, 25)", "the screen gets its colours back"
    assert opened.complaints == []
    page.close()


def test_chromium_survives_hostile_names_and_failures(browser: Any, tmp_path: Path) -> None:
    layers = fake_layers()
    layers[3] |= {"name": HOSTILE * 3}
    layers[9] |= {"kept": 0, "density": 0.0, "dead_filters": 32}
    one = make_run(
        tmp_path / "one",
        layers=layers,
        method=HOSTILE,
        metric=HOSTILE,
        checks={HOSTILE: fake_checks()["erk"]},
    )
    two = make_run(tmp_path / "two", metrics=False, checks=None, accuracy={"after": 0.5})
    for path in (write(one), report([one, two])):
        opened = Opened(browser, path, width=360)
        assert opened.complaints == []
        assert opened.overflow() <= 0
        assert opened.page.locator("img").count() == 0
        opened.page.close()


# ---- many runs ----


@pytest.fixture
def opened(browser: Any, grid: Path) -> Iterator[Any]:
    page = Opened(browser, grid)
    yield page
    assert page.complaints == []
    assert page.requests == [grid.resolve().as_uri()]
    page.page.close()


def walk(page: Any) -> None:
    """Scroll to the foot, so that every chart is drawn."""
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()


@pytest.mark.alone
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "light"), (360, "dark")])
def test_chromium_shows_it_soon_and_nothing_overflows(browser: Any, grid: Path, width: int, scheme: str) -> None:
    shown = Opened(browser, grid, width, scheme)
    if shown.ms > 3000:  # once more: other work on the machine is not the page's fault
        shown.ms = Opened(browser, grid, width, scheme).ms
    assert shown.ms < 3000
    walk(shown.page)
    assert shown.overflow() <= 0
    assert shown.complaints == []
    for chart in shown.page.locator(".chart").all():
        box = chart.locator(".main-svg").first.bounding_box()
        assert box["x"] + box["width"] <= width
    label = shown.style("#after .xtick text", "fill")
    assert label == ("rgb(163, 170, 181)" if scheme == "dark" else "rgb(90, 96, 107)")
    shown.page.close()


def column(page: Any, number: int) -> list[str]:
    cells = "[...document.querySelectorAll('#runs tbody tr:not([hidden])')].map((row) => row.cells[n])"
    return list(page.evaluate(f"(n) => {cells}.map((cell) => cell.dataset.v ?? cell.textContent.trim())", number))


def test_chromium_sorts_by_click_and_key_and_filters(opened: Any) -> None:
    page = opened.page
    head = page.locator("#runs th button", has_text=re.compile("^after$"))
    head.click()
    values = [float(v) for v in column(page, 7)]
    assert len(values) == 285
    assert values == sorted(values, reverse=True)
    assert head.locator("..").get_attribute("aria-sort") == "descending"
    head.focus()
    page.keyboard.press("Enter")
    assert [float(v) for v in column(page, 7)] == sorted(values)
    assert head.locator("..").get_attribute("aria-sort") == "ascending"
    page.locator("#runs th button", has_text=re.compile("^before$")).click()
    page.locator("#runs th button", has_text=re.compile("^method$")).click()
    assert column(page, 1)[0] == "edge-popup"
    assert page.locator("#runs th[aria-sort=ascending]").count() == 1
    page.fill("#filter", "SNIP  fashion")
    assert set(column(page, 1)) == {"snip"}
    assert page.locator("#count").text_content() == "9 of 285"
    page.fill("#filter", "nothing of the kind")
    assert page.locator("#count").text_content() == "0 of 285"
    page.fill("#filter", "")
    assert len(column(page, 1)) == 285


def test_chromium_chooses_hovers_and_hides(opened: Any) -> None:
    page = opened.page
    cost = page.locator("#cost")
    cost.scroll_into_view_if_needed()
    cost.locator(".main-svg").first.wait_for()
    title = cost.locator(".xtitle")
    assert title.text_content() == "epochs of the search"
    page.select_option("[data-choose=measure]", "flops_dense")
    settle(page, "() => document.querySelector('#cost .xtitle').textContent == 'FLOPs of the search'")
    page.select_option("[data-choose=field]", "1")
    page.select_option("[data-choose=at]", "0")
    headings = page.locator("h2", has=page.locator("[data-chosen]")).all_text_contents()
    assert "Methods and their checks: resnet20 on fashion-mnist at 5% density" in [
        " ".join(h.split()) for h in headings
    ]
    shown = page.locator("[data-field]:visible")
    assert {(d.get_attribute("data-field"), d.get_attribute("data-at")) for d in shown.all()} == {("1", "0")}
    point = cost.locator(".scatterlayer .trace .points path").last
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#cost .hoverlayer .hovertext")
    assert re.search(r"FLOPs of the search: .*FLOP", cost.locator(".hoverlayer").text_content())

    def drawn() -> int:
        return int(page.evaluate("document.getElementById('cost').data.filter((t) => t.meta !== undefined).length"))

    assert drawn() == 14
    chip = page.locator(".chip", has_text="snip")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    settle(page, "() => document.getElementById('cost').data.every((t) => t.name !== 'snip')")
    assert drawn() == 13
    page.locator(".chip", has_text="hide all").click()
    page.locator(".chip", has_text="show all").click()
    settle(page, "() => document.getElementById('cost').data.length == 16")
    whole = page.evaluate("document.getElementById('after').layout.yaxis.range[0]")
    page.select_option("[data-choose=scale]", "near")
    settle(page, "(low) => document.getElementById('after').layout.yaxis.range[0] > low", arg=whole)


def test_chromium_prints_all_tables_and_charts(opened: Any) -> None:
    page = opened.page
    assert page.locator("[data-field]:visible").count() == 3
    page.emulate_media(media="print")
    settle(page, "() => document.querySelectorAll('.chart .main-svg').length > 4")
    assert page.locator("[data-field]:visible").count() == 18
    assert page.locator("details:not([open])").count() == 0
    assert page.locator(".chart .main-svg").count() >= 4
    page.emulate_media(media="screen")
    settle(page, "() => [...document.querySelectorAll('[data-field]')].filter((d) => !d.hidden).length == 3")
