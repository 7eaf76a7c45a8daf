"""What check_gpu.py says of one thing that it looked at."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Word = Literal["right", "wrong", "fast", "slow", "found", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A line of the table."""

    check: str
    verdict: Word
    """`right` or `wrong` of results, `fast` or `slow` of times; `found`: a figure that is neither."""
    found: str
    """In words."""
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.check:42}{self.verdict:9}{self.found}"

    def to_line(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self))


def near(check: str, error: float, *, limit: float, what: str) -> Verdict:
    """Return whether an error is under its limit; NaN is not."""
    return Verdict(
        check=check,
        verdict="right" if error < limit else "wrong",
        found=f"{what} {error:.2g}, limit {limit:.2g}",
        figures={"error": error, "limit": limit},
    )


def quick(check: str, share: float, *, least: float, found: str, figures: dict[str, Any]) -> Verdict:
    """Return whether enough of the time is spent on what can't be avoided."""
    return Verdict(check=check, verdict="fast" if share >= least else "slow", found=found, figures=figures)
