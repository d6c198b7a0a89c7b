"""The report in a real browser, without a network: charts with pixels, no error, a phone's width, the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from tests.watch.made_runs import SESSION, make_device_run, make_trainer_run, make_troubled_run

pytestmark = pytest.mark.slow
PIXELS = """() => [...document.querySelectorAll("canvas")].map((canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), colours = new Set();
  for (let i = 0; i < data.length; i += 4) if (data[i + 3]) colours.add(`${data.slice(i, i + 3)}`);
  return colours.size;
})"""
CUT = """() => [...document.querySelectorAll("h1, h2, h3, p, li, label, figure, fieldset")]
  .filter((one) => one.getClientRects().length && one.getBoundingClientRect().right > innerWidth + 1)
  .map((one) => one.textContent.slice(0, 60))"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("report")
    runs = [
        make_troubled_run(where / "troubled", name="pi"),
        make_device_run(where / "long", 2000, name="</script><script>console.error('run')</script>"),
        make_device_run(where / "old", 50, timed=False, complete=False),
        make_trainer_run(where / "trainer", {SESSION: "pi", 2: "<img src=http://192.0.2.1/x onerror=alert(1)>"}),
    ]
    result = CliRunner().invoke(main, ["report", *map(str, runs), "-o", str(where / "report.html")])
    assert result.exit_code == 0, result.output
    return where / "report.html"


@contextmanager
def opened(browser: Any, file: Path, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """The page at a width; at the end of the block it must have asked for nothing and complained of nothing."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on(
        "request", lambda request: faults.append(request.url) if request.url not in (file.as_uri(), "data:,") else None
    )
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelectorAll('canvas').length > 0")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    yield page
    context.close()
    assert faults == []


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_has_pixels_and_nothing_is_cut(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    with opened(browser, page_file, width, scheme) as page:
        colours = page.evaluate(PIXELS)
        assert len(colours) == 7  # loss, accuracy, three runs' phases, two runs' links
        assert min(colours) > 20
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == []


def test_the_axis_can_be_switched_and_a_run_be_left_out(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        plot = page.locator(".plot").first
        assert "against steps" in plot.get_attribute("aria-label")
        page.get_by_role("radio", name="wall time").check()
        assert "against wall time" in plot.get_attribute("aria-label")
        page.get_by_role("radio", name="bytes").check()
        assert "against bytes" in plot.get_attribute("aria-label")
        button = page.get_by_role("button", name="long")
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        plot.focus()
        page.keyboard.press("Home")
        assert "long" not in page.locator(".readout").first.inner_text()


def test_the_keyboard_reads_values_out_and_a_table_stands_behind_each_chart(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        page.locator(".plot").first.focus()
        page.keyboard.press("End")
        assert page.locator(".readout").first.inner_text().startswith("1996: long ")
        page.keyboard.press("ArrowLeft")
        assert page.locator(".readout").first.inner_text().startswith("1986: long ")
        assert page.locator("figure.chart").count() == page.locator("figure.chart details").count() == 7
        page.locator("figure.chart summary").first.focus()
        page.keyboard.press("Enter")
        table = page.locator("figure.chart table").first
        table.wait_for()
        assert table.locator("thead th").all_inner_texts()[:3] == ["steps", "troubled", "long"]
        assert table.locator("tbody tr").count() > 50
        assert page.locator("h2").count() == page.locator("section").count()


def test_print_is_light_whatever_the_screen_is(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, scheme="dark") as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--page').trim()") == "#fff"
        assert page.pdf(format="A4").startswith(b"%PDF")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--page').trim()") != "#fff"
