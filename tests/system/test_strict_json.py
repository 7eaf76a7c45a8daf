"""JSON of numbers that aren't finite."""

import json
from typing import Any

from ldm_vae.system.strict_json import dump_json


def refuse(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON")


def test_what_is_not_finite_is_null_with_a_word_beside() -> None:
    nan, inf = float("nan"), float("inf")
    content = {"psnr": {"value": nan, "unit": "dB"}, "kl": [1.0, -inf, nan], "rows": [{"x": inf}], "fine": [1, 2.5]}
    assert json.loads(dump_json(content, indent=1), parse_constant=refuse) == {
        "psnr": {"value": None, "value_not_finite": "nan", "unit": "dB"},
        "kl": [1.0, None, None],
        "kl_not_finite": "-inf, nan",
        "rows": [{"x": None, "x_not_finite": "inf"}],
        "fine": [1, 2.5],
    }
