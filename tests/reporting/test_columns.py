"""The words of the columns are those of the documentation, all of them."""

from __future__ import annotations

import re

from ldm_vae.reporting.columns import column_words, objective_page


def test_every_documented_column_has_its_words() -> None:
    page = objective_page().read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+)` \|", page, re.MULTILINE)
    words = column_words()
    assert list(words) == rows
    assert words["rec"].meaning.startswith("Rec, in pixel values")
    assert words["rec"].healthy == "falls, fast at first"
    assert words["validation/psnr"].healthy == "rises"
    assert not any("`" in each.meaning + each.healthy for each in words.values())
