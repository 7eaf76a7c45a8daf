"""Progress: a bar on a terminal, few lines in a log."""

import io
import sys
from pathlib import Path

import pytest

import ldm_vae
from ldm_vae.system.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, **options: float) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(10_000, what="encode", unit="img", **options) as bar:  # type: ignore[arg-type]
        for i in range(10_000):
            bar.set_postfix_str(f"{i} skipped")
            bar.update()
            if i == 5000:
                bar.write("a picture was skipped")
    return stream.getvalue()


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    written = work(io.StringIO(), monkeypatch)
    lines = written.splitlines()
    assert len(lines) == 2
    assert lines[0] == "a picture was skipped"
    assert lines[1].startswith("encode: 100%, 10000 of 10000 img, ")
    assert lines[1].endswith(", 9999 skipped")
    assert "\r" not in written
    often = work(io.StringIO(), monkeypatch, seconds_between_lines=0.0)
    assert len(often.splitlines()) > 1000


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\r" in work(Terminal(), monkeypatch)


def test_silence_and_unknown_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert work(io.StringIO(), monkeypatch, show=False) == "a picture was skipped\n"
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(None, what="verify", unit="shard") as bar:
        bar.update(3)
    assert stream.getvalue().startswith("verify: 3 shard, ")


def test_all_progress_is_shown_this_way() -> None:
    """A bar of tqdm's own writes its control characters into log files."""
    package = Path(ldm_vae.__file__).parent
    users = [path.name for path in package.rglob("*.py") if "from tqdm" in path.read_text(encoding="utf-8")]
    assert users == ["progress.py"]
