"""Chromium, as a person who opens a report has it, with an eye on what the page asks for and complains of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_MILLISECONDS = 180_000
"""How long the browser and its pages are waited for, on a machine that others use too."""
_OF_THE_TESTS = "Canvas2D: Multiple readback operations"
"""A warning about reading pixels back, which the page doesn't do, but the tests."""


@dataclass(kw_only=True)
class Page:
    """An open page."""

    browser_page: Any
    """Playwright's page."""
    requests: list[str] = field(default_factory=list)
    """Addresses that were asked for, but for what is within the page."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, and uncaught exceptions."""

    def run(self, script: str, argument: object = None) -> Any:
        """Return what a script gives that is run in the page."""
        return self.browser_page.evaluate(script, argument)

    def find(self, selector: str) -> Any:
        """Return Playwright's locator of the first element."""
        return self.browser_page.locator(selector).first

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.run("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def pixel(self, kind: str, subject: int, x: float, y: float) -> list[int]:
        """Return the colour at a place of a pane of the viewer, in shares of its width and height."""
        return self.run(
            """([kind, subject, x, y]) => {
              const pane = `.subject[data-subject="${subject}"] [data-kind="${kind}"]`;
              const canvas = document.querySelector(`${pane} canvas`);
              const at = [x * canvas.width, y * canvas.height].map(Math.floor);
              return [...canvas.getContext("2d").getImageData(...at, 1, 1).data].slice(0, 3);
            }""",
            [kind, subject, x, y],
        )

    def colour(self, version: str, x: int, y: int) -> list[int]:
        """Return a pixel of the picture that is shown: of the `original`, or of the number of an autoencoder."""
        return self.run(
            """([version, x, y]) => {
              const { data, width } = viewers[0].pixels[version];
              return [...data.slice(4 * (y * width + x), 4 * (y * width + x) + 3)];
            }""",
            [version, x, y],
        )


class Browser:
    """A browser that opens pages."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    def open(self, path: Path, **context: object) -> Page:
        """Open a file, in a context of its own: `viewport`, `color_scheme`, `java_script_enabled`."""
        opened = self._browser.new_context(**context)
        opened.set_default_timeout(_MILLISECONDS)
        browser_page = opened.new_page()
        page = Page(browser_page=browser_page)
        browser_page.on("request", lambda request: _note(page.requests, request.url))
        browser_page.on("console", lambda message: _complain(page, message))
        browser_page.on("pageerror", lambda error: page.complaints.append(str(error)))
        browser_page.goto(path.as_uri())
        if context.get("java_script_enabled", True) and browser_page.locator(".viewer").count():
            browser_page.wait_for_selector(".viewer[data-shown]")
            page.settle()
        return page


def hold_readable(browser: Browser, report: Path, *, width: int, scheme: str) -> Page:
    """Hold that a page fits into a width, passes axe, loads nothing and complains of nothing; return it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'ldm-vae[test]' brings axe")
    page = browser.open(report, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.run("() => document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page.browser_page).response["violations"]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"][:3]]) for each in found] == []
    assert page.complaints == []
    assert page.requests == [report.as_uri()]
    return page


@contextmanager
def open_browser(chromium: str) -> Iterator[Browser]:
    """Yield a browser that has no network of its own to fall back on."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'ldm-vae[test]' brings Playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"], timeout=_MILLISECONDS
        )
        yield Browser(browser)
        browser.close()


def _note(requests: list[str], address: str) -> None:
    if not address.startswith("data:"):
        requests.append(address)


def _complain(page: Page, message: Any) -> None:
    if message.type in ("error", "warning") and not message.text.startswith(_OF_THE_TESTS):
        page.complaints.append(message.text)
