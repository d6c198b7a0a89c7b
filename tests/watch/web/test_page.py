"""The page in Chromium: live, complete, without errors, without any request beyond its origin."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from adc_edge.storage.events import Started
from tests.meanwhile import repeated
from tests.watch.synthetic import SyntheticRun
from tests.watch.watching import Watching
from tests.watch.web.seen import Seen, text_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>\x1b[31m\u202e\"'&amp;"
PIXELS = """canvas => {
  const found = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let i = 0; i < found.length; i += 4)
    if (found[i + 3] > 200) colours.add(`${found[i]},${found[i + 1]},${found[i + 2]}`);
  return colours.size;
}"""
OUTSIDE = """() => [...document.querySelectorAll("main *, header *")].filter(one => {
  const box = one.getBoundingClientRect();
  const kept = one.closest(".u-wrap, .wide, thead, [hidden], details:not([open])");
  return !kept && box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map(one => one.outerHTML.slice(0, 100))"""
CUT = """() => [...document.querySelectorAll("main *, header *")].filter(one => {
  const kept = one.closest(".u-wrap, .plot, .wide, thead, [hidden], details:not([open]), progress");
  const hides = getComputedStyle(one).overflowX !== "visible";
  return !kept && one.clientWidth && hides && one.scrollWidth > one.clientWidth + 1;
}).map(one => one.outerHTML.slice(0, 100))"""
OVERLAPS = """() => {
  const names = ".pill, .tiles div, figure, .shares, .devices tbody tr, h1, .head h2, .facts, .left";
  const all = [...document.querySelectorAll(names)]
    .filter(one => one.getBoundingClientRect().width);
  const boxes = all.map(one => one.getBoundingClientRect()), found = [];
  for (let i = 0; i < all.length; i++) for (let j = i + 1; j < all.length; j++) {
    if (all[i].contains(all[j]) || all[j].contains(all[i])) continue;
    const [a, b] = [boxes[i], boxes[j]];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    if (wide > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1)
      found.push(`${all[i].outerHTML.slice(0, 60)} / ${all[j].outerHTML.slice(0, 60)}`);
  }
  return found;
}"""


def writing(*runs: SyntheticRun) -> AbstractContextManager[None]:
    """Append a step to each run every 0.1 s."""

    def write() -> None:
        for run in runs:
            run.step()

    return repeated(write, 0.1)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[SyntheticRun]:
    names = ["kitchen-camera", "garage", "a-device-with-a-long-name-that-does-not-seem-to-end-1", "yard"]
    with SyntheticRun(tmp_path / "fleet", devices=names, steps=1000) as run:
        for device in range(4):
            run.join(device)
        for number in range(400):
            run.step(number % 4)
        run.use()
        run.evaluation(0)
        run.done(3)
        yield run


@pytest.fixture
def device(tmp_path: Path) -> Iterator[SyntheticRun]:
    with SyntheticRun(tmp_path / "device", "device", ["kitchen-camera"], steps=1000, start=time.time() - 100) as run:
        for number in range(300):
            run.step()
            if number % 100 == 99:
                run.evaluation()
        yield run


def opened(page: Page, watching: Watching) -> Page:
    page.goto(watching.url)
    expect(page.locator("#link")).to_have_text("live", timeout=20_000)
    expect(page.locator(".u-wrap canvas").first).to_be_visible(timeout=20_000)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_is_whole_at_any_width_and_asks_nobody_else(
    browser: Browser, fleet: SyntheticRun, device: SyntheticRun, width: int, scheme: Literal["light", "dark"]
) -> None:
    with Watching(fleet.path, device.path) as watching:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        seen = Seen(context)
        page = opened(context.new_page(), watching)
        expect(page.locator("section.run")).to_have_count(2)
        expect(page.locator(".charts figure")).to_have_count(2 + 4 + 2 + 1 + 1)
        expect(page.locator(".devices tbody tr")).to_have_count(4)
        for canvas in page.locator(".u-wrap canvas").all():
            assert canvas.evaluate(PIXELS) > 5
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(CUT) == []
        assert page.evaluate(OVERLAPS) == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        context.close()
    assert seen.faults == []
    assert {urlsplit(url).netloc for url in seen.requests} == {urlsplit(watching.url).netloc}


def test_values_move_while_the_run_goes_on(browser: Browser, fleet: SyntheticRun, device: SyntheticRun) -> None:
    with Watching(fleet.path, device.path) as watching:
        context = browser.new_context()
        seen = Seen(context)
        page = opened(context.new_page(), watching)
        left = page.locator(".left")
        first = left.all_inner_texts()
        drawn = page.locator(".u-wrap canvas").first.evaluate("canvas => canvas.toDataURL()")
        with writing(fleet, device):
            for number in range(2):
                expect(left.nth(number)).not_to_have_text(first[number], timeout=10_000)
            page.wait_for_function(
                "before => document.querySelector('.u-wrap canvas').toDataURL() !== before", arg=drawn, timeout=10_000
            )
            cell = page.locator(".devices tbody tr").first.locator("td").nth(1)
            before = cell.inner_text()
            expect(cell).not_to_have_text(before, timeout=10_000)
        assert text_of(page, "Memory") == "813 MB"
        assert text_of(page, "Held in the queue") == "65.5 kB"
        context.close()
    assert seen.faults == []


def test_a_device_that_goes_away_shows_so_within_10_seconds(browser: Browser, fleet: SyntheticRun) -> None:
    with Watching(fleet.path) as watching:
        page = opened(browser.new_page(), watching)
        row = page.locator(".devices tbody tr").filter(has_text="garage")
        expect(row.locator(".pill")).to_have_text("connected")
        fleet.away(1)
        expect(row.locator(".pill")).to_have_text("away", timeout=10_000)
        expect(page.locator(".counts")).to_have_text("2 connected, 1 away, 1 finished, 0 refused")
        fleet.join(1)
        expect(row.locator(".pill")).to_have_text("connected", timeout=10_000)
        page.close()


def test_a_trainer_that_came_back_and_a_device_that_stands_still_are_shown_as_such(
    browser: Browser, fleet: SyntheticRun, device: SyntheticRun
) -> None:
    fleet.tell(Started(time=time.time(), role="trainer", version="0.10.0", pid=1, step=400))
    with Watching(fleet.path, device.path) as watching:  # the device's last line is 40 s old
        page = opened(browser.new_page(), watching)
        legend = page.locator("section.run").first.locator(".charts .legend")
        expect(legend.filter(has_text="resumed").first).to_be_visible()
        speed = page.locator("section.run").last.locator(".tiles div").filter(has_text="Steps a second")
        expect(speed.locator("dd")).to_have_text("–")
        expect(page.locator(".left").last).not_to_contain_text("left")
        page.close()


def test_texts_of_devices_and_errors_stay_texts(browser: Browser, tmp_path: Path) -> None:
    with SyntheticRun(tmp_path / "run", devices=[EVIL, "b"]) as run, Watching(run.path) as watching:
        for device in range(2):
            run.join(device)
            run.step(device, precision=EVIL)
        run.refuse(EVIL, 0)
        run.warn(EVIL)
        context = browser.new_context()
        seen = Seen(context)
        page = opened(context.new_page(), watching)
        row = page.locator(".devices tbody tr").first
        expect(row).to_contain_text("<img src=x onerror=alert(1)>", timeout=10_000)
        expect(row).to_contain_text("\\x1b[31m\\u202e")
        page.locator(".warnings summary").click()
        expect(page.locator(".warnings li")).to_contain_text("<script>")
        assert page.locator("main img, main script").count() == 0
        context.close()
    assert seen.faults == []


def test_twenty_open_pages_are_all_live(browser: Browser, fleet: SyntheticRun) -> None:
    with Watching(fleet.path) as watching:
        context = browser.new_context()
        seen = Seen(context)
        pages = [opened(context.new_page(), watching) for _ in range(20)]
        first = [page.locator(".left").inner_text() for page in pages]
        with writing(fleet):
            for page, before in zip(pages, first, strict=True):
                expect(page.locator(".left")).not_to_have_text(before, timeout=20_000)
        assert watching.memory_mb() < 250
        context.close()
    assert seen.faults == []


def test_the_printed_address_opens_the_page_and_the_token_leaves_the_address_bar(
    browser: Browser, fleet: SyntheticRun
) -> None:
    with Watching(fleet.path, options=("--web", "0.0.0.0:*")) as watching:
        stranger = browser.new_context()  # of its own: the browser asks for the icon of a refused page when it likes
        refused = stranger.new_page().goto(f"http://127.0.0.1:{watching.port}/")
        assert refused is not None
        assert refused.status == 401
        stranger.close()
        context = browser.new_context()
        page = context.new_page()
        seen = Seen(context)
        token = watching.url.partition("?")[2]
        page.goto(f"http://127.0.0.1:{watching.port}/?{token}")
        expect(page.locator("#link")).to_have_text("live", timeout=20_000)
        assert page.evaluate("location.href") == f"http://127.0.0.1:{watching.port}/"
        assert page.evaluate("document.cookie") == ""
        with writing(fleet):
            before = page.locator(".left").inner_text()
            expect(page.locator(".left")).not_to_have_text(before, timeout=10_000)
        page.reload()
        expect(page.locator("#link")).to_have_text("live", timeout=20_000)
        context.close()
    assert seen.faults == []


def test_a_page_says_when_the_process_has_ended_and_goes_on_with_the_next_one(
    browser: Browser, fleet: SyntheticRun
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = browser.new_page()
    with Watching(fleet.path, options=("--web", f"127.0.0.1:{port}")) as watching:
        opened(page, watching)
    expect(page.locator("#link")).to_contain_text("no connection", timeout=20_000)
    fleet.step()
    with Watching(fleet.path, options=("--web", f"127.0.0.1:{port}")):
        expect(page.locator("#link")).to_have_text("live", timeout=30_000)
        expect(page.locator(".left")).to_contain_text("401", timeout=10_000)
        page.close()


def test_the_keyboard_reaches_everything_and_reads_values_out(browser: Browser, fleet: SyntheticRun) -> None:
    with Watching(fleet.path) as watching:
        page = opened(browser.new_page(), watching)
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(str(page.evaluate("document.activeElement.className || document.activeElement.tagName")))
        assert {"skip", "wide", "plot", "BUTTON", "INPUT", "SUMMARY"} <= set(reached)
        page.locator(".plot").first.focus()
        page.keyboard.press("ArrowRight")
        assert re.match(r"0|1: kitchen-camera", page.locator(".readout").first.inner_text())
        assert "kitchen-camera from" in (page.locator(".plot").first.get_attribute("aria-label") or "")
        for element in page.locator("[role=status]").all():
            assert element.get_attribute("aria-live") == "polite"
        page.close()


def test_a_run_without_a_line_and_one_of_many_devices_open(browser: Browser, tmp_path: Path) -> None:
    names = [f"device-{number}" for number in range(300)]
    with SyntheticRun(tmp_path / "many", devices=names) as many, SyntheticRun(tmp_path / "none", "device") as none:
        for device in range(300):
            many.join(device)
            many.step(device)
        with Watching(none.path, many.path) as watching:
            context = browser.new_context()
            seen = Seen(context)
            page = opened(context.new_page(), watching)
            expect(page.locator("section.run")).to_have_count(2)
            expect(page.locator(".devices tbody tr")).to_have_count(200)
            expect(page.locator(".counts").last).to_have_text("300 connected, 0 away, 0 finished, 0 refused")
            expect(page.locator(".more").last).to_have_text("and 100 more")
            context.close()
    assert seen.faults == []
