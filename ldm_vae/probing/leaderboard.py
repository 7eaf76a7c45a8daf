"""`leaderboard`: results of several probes in one table, where they were made alike."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_vae.config.commands.leaderboard import LeaderboardOptions
from ldm_vae.config.rules import FieldError, require
from ldm_vae.panel.measures import format_panel
from ldm_vae.probing.folder import METRICS
from ldm_vae.probing.protocol import differences, with_hash
from ldm_vae.system.files import write_whole
from ldm_vae.system.markdown import markdown_table, markdown_text
from ldm_vae.system.text import printable


@dataclass(frozen=True, kw_only=True)
class LeaderboardSummary:
    """The merged table; `str()` is what the command line prints."""

    table: str
    output: Path | None

    def __str__(self) -> str:
        """Return the table and where it was written."""
        return self.table if self.output is None else f"{self.table}\n\ntable: {self.output}"


def leaderboard(options: LeaderboardOptions) -> LeaderboardSummary:
    """Merge the metrics.json files of probes.

    An autoencoder that several of them have, by its fingerprint, must have the same figures in all.

    Raises:
        ValueError: A folder holds no probe's results, they were changed by hand, or protocols differ: the message says
            in what.
    """
    output = None if options.output is None else Path(options.output)
    require(output is None or not output.exists(), f"<output> {output} is there already; name another file")
    files = [Path(folder) / METRICS for folder in options.probes]
    contents = [_read(file) for file in files]
    first = contents[0]
    for file, content in zip(files, contents, strict=True):
        others = differences(first["protocol"], content["protocol"])
        require(
            not others,
            f"<probes>: {file.parent} was probed otherwise than {files[0].parent}: {'; '.join(others)}; figures of "
            f"different protocols can't be compared",
        )
    entries: dict[str, dict[str, Any]] = {}
    for file, content in zip(files, contents, strict=True):
        for entry in content["autoencoders"]:
            before = entries.setdefault(entry["vae_fingerprint"], entry)
            require(
                _agree(before, entry, scores=content["scores"]),
                f"<probes>: {file.parent} has other figures of {printable(entry['name'])} than another probe of the "
                f"same protocol, whose version or device was another; probe all in one call",
            )
    table = _table(list(entries.values()), scores=first["scores"], protocol=first["protocol"])
    if output is not None:
        write_whole(output, f"{table}\n".encode())
    return LeaderboardSummary(table=table, output=output)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        require(content["kind"] == "probe", f"<probes>: {file} isn't of `ldm-vae probe`")
        protocol = {name: value for name, value in content["protocol"].items() if name != "sha256"}
        digest = content["protocol"]["sha256"]
    except OSError as error:
        raise FieldError(f"<probes>: {file} can't be read: {error.strerror}; is the probe finished?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise FieldError(f"<probes>: {file} isn't as `ldm-vae probe` writes it") from None
    require(with_hash(protocol)["sha256"] == digest, f"<probes>: {file} has a protocol that its hash isn't of")
    return content


def _agree(one: dict[str, Any], two: dict[str, Any], *, scores: list[str]) -> bool:
    """Whether two entries of an autoencoder have the same scores, up to rounding."""
    for score in scores:
        values = [entry["scores"][score]["mean"] for entry in (one, two)]
        if None in values:
            return values[0] == values[1]
        if not math.isclose(*values, rel_tol=1e-3):
            return False
    return True


def _table(entries: list[dict[str, Any]], *, scores: list[str], protocol: dict[str, Any]) -> str:
    tables = []
    if scores:
        entries = sorted(entries, key=lambda entry: _order(entry["scores"][scores[0]]["mean"]))
        rows = [["vae", "latent", *(f"{score} (lower is better)" for score in scores), "reconstructions"]]
        for entry in entries:
            shape = "x".join(map(str, entry["latent_shape"]))
            values = [_shown(entry["scores"][score]) for score in scores]
            found = entry["reconstruction"][scores[0]]
            rows.append([markdown_text(entry["name"]), shape, *values, "" if found is None else f"{found:.4g}"])
        tables.append(markdown_table(rows))
    if protocol["panel"] is not None:
        figures = [
            {k: v for k, v in entry["panel"]["figures"].items() if isinstance(v, float | int)} for entry in entries
        ]
        tables.append(format_panel([markdown_text(entry["name"]) for entry in entries], figures))
    return "\n\n".join([*tables, f"protocol {protocol['sha256'][:12]}"])


def _shown(score: dict[str, Any]) -> str:
    return "not finite" if score["mean"] is None else f"{score['mean']:.4g} ± {score['std']:.2g}"


def _order(value: float | None) -> float:
    return math.inf if value is None else value
