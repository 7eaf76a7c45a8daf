"""`score`: how unlike normal pictures each picture is, by an autoencoder that was trained on normal ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm_vae.config.commands.score import ScoreOptions
from ldm_vae.evaluation.results import package_versions
from ldm_vae.models.fingerprint import fingerprint
from ldm_vae.reporting.report import write_report
from ldm_vae.scoring.files import MAPS, PICTURES, heat_limits, write_heat, write_map
from ldm_vae.scoring.labels import Labels, read_labels
from ldm_vae.scoring.measure import Kept, Measured
from ldm_vae.scoring.results import (
    ScoredPicture,
    ScoreKind,
    likelihood_variance,
    protocol_record,
    ranking,
    results_of,
    score_kinds,
    scored,
    thresholds_of,
)
from ldm_vae.scoring.scorer import Scorer
from ldm_vae.scoring.summary import METRICS, TABLE, ScoreSummary
from ldm_vae.system.files import write_whole
from ldm_vae.system.output_kinds import REPORT, SCORES
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.system.strict_json import dump_json

NORMAL = "normal.jsonl"


def score(options: ScoreOptions) -> ScoreSummary:
    """Score pictures and write scores.jsonl, metrics.json, table.md, maps and pictures.

    Raises:
        ValueError: In one line, for an output that is taken, data or weights that can't be read, an autoencoder that
            doesn't fit the data or the resolution, and a score that there isn't.
    """
    output = OutputFolder(options.output, kind=SCORES)
    output.check(overwrite=options.overwrite)
    scorer = Scorer(options)
    normal, normal_images = scorer.open("normal", options.normal, split=options.normal_split, most=options.num_normal)
    data, images = scorer.open("data", options.data, split=options.split, most=options.num_images)
    labels = read_labels(data, images.indices, column=options.label_column, normal=options.normal_label)

    measured = scorer.measure(normal_images, normal, title="normal pictures")
    variance = likelihood_variance(measured)
    kinds, missing = score_kinds(options, scorer.protocol, variance=variance)
    ranked_by = ranking(kinds, options.rank_by)
    thresholds = thresholds_of(measured, kinds, quantile=options.quantile)
    found = scorer.measure(images, data, title="pictures", ranked_by=kinds[ranked_by])
    scorer.tell_doubts(measured, found)

    known = [
        scored(i, measured.figures[i], kinds=kinds, thresholds=thresholds, label=None)
        for i in sorted(measured.figures)
    ]
    pictures = [
        scored(i, found.figures[i], kinds=kinds, thresholds=thresholds, label=labels.of.get(i))
        for i in found.order(kinds[ranked_by].of)
    ]
    summary = ScoreSummary(
        results=results_of(kinds, thresholds=thresholds, normal=known, data=pictures, labels=labels),
        pictures=pictures,
        normal=known,
        ranked_by=ranked_by,
        missing=missing,
        skipped={"data": found.skipped, "normal": measured.skipped},
        quantile=options.quantile,
        output=output.path,
        report=output.path / REPORT if options.report else None,
    )
    if scorer.processes.is_main_process:
        record = _record(scorer, summary, kinds=kinds, labels=labels, measured={"normal": measured, "data": found})
        with output.whole(overwrite=options.overwrite) as folder:
            _write(folder, summary, record, kept=found.kept, options=options)
        if options.report:
            write_report([output.path])
    scorer.processes.wait_for_everyone()
    return summary


def _record(
    scorer: Scorer,
    summary: ScoreSummary,
    *,
    kinds: Mapping[str, ScoreKind],
    labels: Labels,
    measured: Mapping[str, Measured],
) -> dict[str, Any]:
    """Return what metrics.json holds."""
    targets = [labels.is_anomaly(picture.index) for picture in summary.pictures]
    variance = likelihood_variance(measured["normal"])
    sets = {
        name: {"num_pictures": len(each.figures), "num_skipped": len(each.skipped), "fingerprint": _fingerprint(each)}
        for name, each in measured.items()
    }
    return {
        "kind": "scores",
        "vae": scorer.options.vae,
        "vae_fingerprint": fingerprint(scorer.family).whole,
        "ranked_by": summary.ranked_by,
        "scores": {name: result.record() for name, result in summary.results.items()},
        "left_out": summary.missing,
        "likelihood": None if variance is None else {"variance": variance, "unit": "squared levels"},
        **sets,
        "labels": {
            "from": labels.origin,
            "normal_label": labels.normal,
            "num_normal": targets.count(False),
            "num_anomalies": targets.count(True),
            "num_without": targets.count(None),
        },
        "protocol": protocol_record(scorer.options, scorer.protocol, kinds),
        "settings": asdict(scorer.options),
        "device": scorer.device.type,
        "processes": scorer.processes.num_processes,
        "versions": package_versions(),
        "skipped": {name: [asdict(each) for each in skipped] for name, skipped in summary.skipped.items()},
    }


def _fingerprint(measured: Measured) -> str:
    """Return a digest of the pixels of all pictures, in order."""
    return hashlib.sha256(b"".join(measured.figures[i].digest for i in sorted(measured.figures))).hexdigest()


def _write(
    folder: Path,
    summary: ScoreSummary,
    record: Mapping[str, Any],
    *,
    kept: Mapping[int, Kept],
    options: ScoreOptions,
) -> None:
    """Write all files into `folder`, which becomes the output."""
    num_maps, num_pictures = options.num_maps, options.num_pictures
    first = [kept[picture.index] for picture in summary.pictures if picture.index in kept]
    thresholds = {name: result.threshold for name, result in summary.results.items()}
    limits = heat_limits([each.maps for each in first], thresholds)
    for name, count in ((MAPS, num_maps), (PICTURES, num_pictures)):
        if count:
            (folder / name).mkdir()
    lines = []
    for place, picture in enumerate(summary.pictures, 1):
        files = {}
        if place <= min(num_maps, len(first)):
            files["map"] = f"{MAPS}/{place:04d}.npz"
            write_map(folder / files["map"], kept[picture.index])
        if place <= min(num_pictures, len(first)):
            files["picture"] = f"{PICTURES}/{place:04d}.png"
            write_heat(folder / files["picture"], kept[picture.index], limits=limits)
        lines.append(_line(picture) | files)
    write_whole(folder / NORMAL, _as_lines([_line(picture) for picture in summary.normal]))
    write_whole(folder / TABLE, (summary.tables() + "\n").encode())
    content = {**record, "brightest": limits}
    write_whole(folder / METRICS, (dump_json(content, indent=1) + "\n").encode())
    write_whole(folder / SCORES.mark, _as_lines(lines))


def _line(picture: ScoredPicture) -> dict[str, Any]:
    """Return a picture for a line of JSON; `above` stands early, since files are known by it."""
    rest = {name: value for name, value in asdict(picture).items() if name not in ("index", "above")}
    return {"index": picture.index, "above": picture.above, **rest}


def _as_lines(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(f"{dump_json(line)}\n" for line in lines).encode()
