"""Options of `ldm-vae report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.rules import Options, local_path, require


@dataclass(kw_only=True)
class ReportOptions(Options):
    """Make one page of evaluations, probes, scores and runs: their pictures, plots and tables, without a network.

    Example: ldm-vae report runs/evaluation runs/mine --output mine.html
    """

    outputs: list[str] = local_path()
    """Folders that `evaluate`, `probe`, `score` and `train` wrote, or a quickstart's."""
    output: Optional[str] = local_path(None)
    """HTML file to write; an earlier report is replaced, no other file is. Without it report.html in the first folder
    is written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.outputs) > 0,
            "<outputs> is empty; name folders that `ldm-vae evaluate`, `probe`, `score` or `train` wrote",
        )
