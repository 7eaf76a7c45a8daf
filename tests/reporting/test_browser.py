"""A report in a real browser: it shows, compares, sorts, fits, is readable, and loads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.browser import Browser, Page, hold_readable
from tests.reporting.conftest import HOSTILE

PIXEL = (16, 8)
IN_SHARES = (16.5 / 32, 8.5 / 32)
"""The middle of that pixel, in shares of the pictures' sides."""


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    opened = browser.open(report, viewport={"width": 1200, "height": 900})
    yield opened
    assert opened.complaints == []
    assert opened.requests == [report.as_uri()]
    opened.browser_page.context.close()


def views(page: Page) -> list[list[float]]:
    """Where each pane has its picture: left, top and scale."""
    page.settle()
    return page.run(
        """() => viewers[0].panes.map(({ drawn }) =>
          [drawn.left, drawn.top, drawn.scale].map((value) => Math.round(100 * value)))"""
    )


def shown(page: Page) -> str:
    return page.find(".now .name").inner_text()


def figures_of(page: Page) -> list[float]:
    """The PSNR of the first autoencoder of each picture in the strip, in its order."""
    return [float(text.split()[0]) for text in page.browser_page.locator(".strip button span").all_inner_texts()]


def test_the_worst_picture_stands_first_with_its_error_map(page: Page) -> None:
    values = figures_of(page)
    assert len(values) == 5
    assert values == sorted(values)
    worst = page.find(".images tbody tr")
    assert shown(page) == worst.locator(".name").inner_text()
    assert page.find(".pane[data-kind=error] canvas").is_visible()
    assert page.find(".pane[data-kind=error] .from").inner_text() == "error map"


def test_slider_shows_the_original_left_and_the_reconstruction_right(page: Page) -> None:
    slider = page.find(".split")
    for value, version in (("100", "original"), ("0", "0")):
        slider.fill(value)
        page.settle()
        assert page.pixel("compare", 0, *IN_SHARES) == page.colour(version, *PIXEL)
    assert page.colour("original", *PIXEL) != page.colour("0", *PIXEL)
    box = page.find(".pane[data-kind=compare] canvas").bounding_box()
    assert box is not None
    page.browser_page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.browser_page.mouse.down()
    page.browser_page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2, steps=3)
    page.browser_page.mouse.up()
    sliders = [float(each.input_value()) for each in page.browser_page.locator(".split").all()]
    assert sliders == pytest.approx([25, 25], abs=0.6)  # those of all autoencoders move


def test_zoom_and_move_are_those_of_all_panes(page: Page) -> None:
    before = views(page)
    assert len(before) == 4
    assert before == [before[0]] * 4
    page.find(".whole").click()
    page.find(".in").click()
    page.find(".in").click()
    box = page.find(".pane[data-kind=error] canvas").bounding_box()
    assert box is not None
    page.browser_page.mouse.dblclick(box["x"] + 10, box["y"] + 10)
    zoomed = views(page)
    assert zoomed == [zoomed[0]] * 4
    assert zoomed[0][2] > before[0][2]
    page.browser_page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.browser_page.mouse.down()
    page.browser_page.mouse.move(box["x"] + 20, box["y"] + 30, steps=2)
    page.browser_page.mouse.up()
    moved = views(page)
    assert moved == [moved[0]] * 4
    assert moved[0][:2] != zoomed[0][:2]
    page.find(".fit").click()
    assert views(page) == before


def test_zoomed_pixels_are_whole_squares_of_the_pictures_own_colours(page: Page) -> None:
    page.find(".split").fill("100")
    for _ in range(12):
        page.find(".in").click()
    page.settle()
    left, top, scale = page.run("() => { const d = viewers[0].panes[0].drawn; return [d.left, d.top, d.scale]; }")
    assert scale == pytest.approx(48)
    size = page.run("() => viewers[0].panes[0].size")
    column, row = (int((size[side] / 2 - start) / scale) for side, start in (("width", left), ("height", top)))
    expected = page.colour("original", column, row)
    for inner in (0.1, 0.9):  # near both ends of the pixel's square
        place = [(start + (at + inner) * scale) for start, at in ((left, column), (top, row))]
        assert page.pixel("compare", 0, place[0] / size["width"], place[1] / size["height"]) == expected


def test_error_map_and_difference_grow_with_the_gain(page: Page) -> None:
    where = ("error", 0, *IN_SHARES)
    page.find(".gain").fill("0")
    page.settle()
    faint = page.pixel(*where)
    page.find(".gain").fill("6")
    page.settle()
    assert sum(page.pixel(*where)) > sum(faint)
    assert page.find(".scale .limit").inner_text() == "3.98 of 255"
    page.find("input[value=difference]").check()
    page.find(".gain").fill("0")
    page.settle()
    pairs = zip(page.colour("original", *PIXEL), page.colour("0", *PIXEL), strict=True)
    assert page.pixel(*where) == [min(255, max(0, 128 + made - original)) for original, made in pairs]


def test_the_error_map_is_the_mean_difference_in_colours(page: Page) -> None:
    page.find(".gain").fill("0")
    page.settle()
    pairs = zip(page.colour("original", *PIXEL), page.colour("0", *PIXEL), strict=True)
    error = sum(abs(made - original) for original, made in pairs) / 3
    expected = page.run("(level) => rampColour(level / 255).map(Math.round)", round(error))
    assert page.pixel("error", 0, *IN_SHARES) == pytest.approx(expected, abs=1)
    assert page.run("() => rampColour(0)") == [0, 0, 4]
    assert page.run("() => rampColour(1)") == [252, 253, 191]


def test_the_first_gain_shows_the_errors_and_hides_none(page: Page) -> None:
    gain = page.run("() => viewers[0].gain")
    beyond = page.run(
        """(gain) => {
          const { original: { data: a }, ...others } = viewers[0].pixels;
          let [all, over] = [0, 0];
          for (const { data: b } of Object.values(others)) {
            for (let at = 0; at < a.length; at += 4) {
              const error = [0, 1, 2].reduce((sum, i) => sum + Math.abs(a[at + i] - b[at + i]), 0) / 3;
              all += 1;
              over += gain * Math.round(error) > 255;
            }
          }
          return over / all;
        }""",
        gain,
    )
    assert beyond <= 0.02
    assert page.find(".bar output").inner_text() == f"×{gain}"


def test_two_autoencoders_are_compared_with_each_other(page: Page) -> None:
    page.find(".left").select_option("1")
    page.find(".split").fill("100")
    page.settle()
    assert page.pixel("compare", 0, *IN_SHARES) == page.colour("1", *PIXEL)
    assert page.find(".pane[data-kind=compare] .from").inner_text() == HOSTILE


def test_pictures_and_tables_are_sorted(page: Page) -> None:
    page.find(".order").select_option("1:ssim")
    values = figures_of(page)
    assert values == sorted(values)
    assert page.find(".strip button").get_attribute("aria-current") == "true"
    head = page.find(".images thead th:nth-child(3) button")
    for expected in ("ascending", "descending"):
        head.click()
        assert page.find(".images thead th:nth-child(3)").get_attribute("aria-sort") == expected
        column = page.browser_page.locator(".images tbody td:nth-child(3)")
        values = [float(each.get_attribute("data-value")) for each in column.all()]
        assert len(values) == 7
        assert values == sorted(values, reverse=expected == "descending")


def test_a_row_of_the_table_leads_to_its_picture(page: Page) -> None:
    row = page.browser_page.locator(".images tr[data-picture]").last
    name = row.locator(".name").inner_text()
    row.locator("button.look").click()
    page.settle()
    assert shown(page) == name
    assert page.browser_page.locator(".latent .channels li").count() == 8  # four of each autoencoder


def test_keys_do_what_buttons_do(page: Page) -> None:
    first = shown(page)
    page.find(".pane canvas").focus()
    keyboard = page.browser_page.keyboard
    keyboard.press("n")
    assert shown(page) != first
    keyboard.press("p")
    assert shown(page) == first
    keyboard.press("ArrowRight")
    assert float(page.find(".split").input_value()) > 50
    keyboard.press("+")
    zoomed = views(page)
    keyboard.press("ArrowRight")
    assert views(page) != zoomed
    keyboard.press("e")
    assert page.find("input[value=difference]").is_checked()
    keyboard.press("0")
    assert page.find(".zoom output").inner_text() != ""
    assert not page.run("() => viewers[0].root.classList.contains('zoomed')")


def test_names_are_text_whatever_they_hold(page: Page) -> None:
    assert page.run("() => document.querySelectorAll('img[src=x], [onerror]').length") == 0
    text = page.find("main").inner_text()
    assert f"{HOSTILE}.png" in text
    assert "\\u202egnp.exe\\u2028.png" in text


def test_the_policy_stops_what_the_page_does_not_hold(browser: Browser, report: Path, tmp_path: Path) -> None:
    altered = tmp_path / "altered.html"
    altered.write_text(
        report.read_text(encoding="utf-8").replace(
            "</main>", "</main><script>window.ran = 1</script><img src='https://example.org/a.png' alt=''>"
        ),
        encoding="utf-8",
    )
    page = browser.open(altered)
    assert page.run("() => window.ran") is None
    assert len(page.complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in page.complaints)


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (800, "light"), (800, "dark"), (1600, "dark")])
def test_the_page_fits_and_is_accessible(browser: Browser, report: Path, width: int, scheme: str) -> None:
    hold_readable(browser, report, width=width, scheme=scheme)


def test_the_theme_can_be_chosen(page: Page) -> None:
    def ground() -> Any:
        return page.run("() => getComputedStyle(document.body).backgroundColor")

    before = ground()
    assert page.find(".theme").inner_text() == "Dark"
    page.find(".theme").click()
    assert ground() != before
    page.find(".theme").click()
    assert ground() == before


def test_without_scripts_pictures_and_tables_are_there(browser: Browser, report: Path) -> None:
    page = browser.open(report, java_script_enabled=False)
    pictures = page.browser_page.locator(".picture img.original")
    assert pictures.count() == 5
    assert all(each.is_visible() for each in pictures.all())
    assert page.browser_page.locator(".picture img.reconstruction").count() == 10
    assert not page.find(".viewer").is_visible()
    assert page.find("table.figures").is_visible()
    assert page.browser_page.locator(".channels img").first.is_visible()
    assert page.browser_page.locator("svg.plot").first.is_visible()
