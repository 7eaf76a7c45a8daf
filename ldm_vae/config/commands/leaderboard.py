"""Options of `ldm-vae leaderboard`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.rules import Options, local_path, require


@dataclass(kw_only=True)
class LeaderboardOptions(Options):
    """Merge the results of several probes into one table, if their protocols are equal; else tell what differs."""

    probes: list[str] = local_path()
    """Folders that `probe` wrote."""
    output: Optional[str] = local_path(None)
    """Markdown file to write the table into as well. It isn't replaced if it is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.probes) > 0, "<probes> is empty; name folders that `ldm-vae probe` wrote")
