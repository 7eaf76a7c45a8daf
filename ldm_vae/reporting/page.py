"""The page: templates filled, style and scripts inside, and a policy under which nothing else is loaded or run."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

import ldm_vae
from ldm_vae.reporting.comparison import ComparisonView
from ldm_vae.reporting.probes import ProbeView
from ldm_vae.reporting.runs import RunsView
from ldm_vae.reporting.scores import ScoresView

FIRST_BYTES = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="ldm-vae report">
"""
"""What every report begins with, by which it is known."""
_TEMPLATES = Path(__file__).parent / "templates"
_STYLES = ("base.css", "content.css", "viewer.css")
_SCRIPTS = ("tables.js", "picture.js", "camera.js", "pane.js", "viewer.js", "start.js")


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a report shows."""

    title: str
    comparisons: list[ComparisonView]
    probes: list[ProbeView]
    scores: list[ScoresView]
    runs: RunsView | None


def render(page: Page) -> str:
    """Return the page as HTML. What it says is escaped, whatever a name holds; pictures are within it."""
    style, script = _joined(_STYLES), _joined(_SCRIPTS)
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return _environment().get_template("page.html").render(
        page=page,
        first=Markup(FIRST_BYTES.decode()),
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        version=ldm_vae.__version__,
    )  # fmt: skip


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(name: str) -> Markup:
    """Return a name that may go on in another line after `_` and `/`, escaped."""
    escaped = str(escape(name))  # of which replace doesn't escape what it puts in
    return Markup(escaped.replace("_", "_<wbr>").replace("/", "/<wbr>"))


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((_TEMPLATES / name).read_text(encoding="utf-8").strip() for name in names)


def _digest(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
