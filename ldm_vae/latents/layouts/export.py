"""`ldm-vae latents export`: latents in the layouts that other trainers read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ldm_vae.config.commands.latents import LatentsExportOptions
from ldm_vae.config.rules import require
from ldm_vae.latents.codebook import write_codebook
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts import kohya, lightningdit, mds, parquet, webdataset
from ldm_vae.latents.layouts.arrays import has_one_shape
from ldm_vae.latents.sealed import dump_json
from ldm_vae.latents.shards import CODEBOOK
from ldm_vae.system.output_kinds import LATENTS_EXPORT
from ldm_vae.system.output_stores import is_marked_store, output_at
from ldm_vae.system.places import is_address, open_store
from ldm_vae.system.progress import progress
from ldm_vae.system.store import Store
from ldm_vae.system.telling import counted
from ldm_vae.system.text import printable

_FILES = {
    "lightningdit": (lightningdit.file_names, lightningdit.write_files),
    "mds": (mds.file_names, mds.write_files),
    "parquet": (parquet.file_names, parquet.write_files),
    "webdataset": (webdataset.file_names, webdataset.write_files),
}


@dataclass(kw_only=True)
class LatentsExportSummary:
    """What was written."""

    output: str
    """Path or address."""
    layout: str
    num_rows: int
    num_files: int
    notes: list[str] = field(default_factory=list)
    """What a user should know, a line each."""

    def __str__(self) -> str:
        line = f"{self.output}: {self.num_rows:,} latents in {counted(self.num_files, 'file')}, layout {self.layout}"
        return "\n".join([line, *self.notes])


def export_latents(options: LatentsExportOptions) -> LatentsExportSummary:
    """Write a folder of latents in another layout.

    The latents are the VAE's own, not scaled, unless the layout's reader expects scaled ones (FLUX's in `kohya`).

    Raises:
        ValueError: In one line, naming what the layout needs and the folder hasn't, or what the output holds.
    """
    keeps_moments = options.layout in ("mds", "parquet", "webdataset")
    require(not (options.sample and keeps_moments), f"<sample> is not for {options.layout}, which keeps mean and std")
    dataset = LatentDataset(options.latents, sample=options.sample, normalize="none", seed=options.seed)
    require(len(dataset) > 0, f"<latents> {options.latents} holds no rows")
    output = output_at(options.output, kind=LATENTS_EXPORT)
    if options.layout == "kohya":  # whose files lie beside the images
        require(not is_address(options.output), f"<output> {options.output} is an address; sd-scripts reads folders")
        output.check_writable()
        planned = kohya.plan_files(dataset, output.path, options)
        _write(kohya.write_files(dataset, planned, options), total=len(planned.files))
        return LatentsExportSummary(
            output=str(output.path),
            layout=options.layout,
            num_rows=len(planned.files),
            num_files=len(planned.files),
            notes=_kohya_notes(planned, output.path),
        )
    if options.layout == "lightningdit":
        require(dataset.index["flip"], f"{dataset.directory} holds no mirrored latents, which lightningdit needs")
        require(
            has_one_shape(dataset),
            f"{dataset.directory} holds buckets of several shapes, for which lightningdit has no place",
        )
    file_names, write_files = _FILES[options.layout]
    output.check(overwrite=options.overwrite)
    keeps_indices = keeps_moments and dataset.codes is not None
    names = [*file_names(dataset), *([CODEBOOK] if keeps_indices else [])]
    mark = dump_json({"layout": options.layout, "files": names})
    store = open_store(options.output)
    output.begin(names, mark=mark, listed=_listed(store))
    _write(write_files(dataset, store), total=len(dataset))
    notes = []
    if keeps_indices and dataset.codes is not None:
        write_codebook(store, dataset.codes)
        notes = [f"column indices numbers the rows of {CODEBOOK}, which are the codes"]
    return LatentsExportSummary(
        output=store.place().rstrip("/"),
        layout=options.layout,
        num_rows=len(dataset),
        num_files=len(names),
        notes=notes,
    )


def _write(written: Iterator[int], *, total: int) -> None:
    with progress(total, what="export", unit="latent") as bar:
        for rows in written:
            bar.update(rows)


def _kohya_notes(planned: kohya.KohyaFiles, folder: Path) -> list[str]:
    notes = []
    if planned.turned:
        notes.append(
            f"{len(planned.turned):,} left out, the first {printable(planned.turned[0])}: sd-scripts doesn't turn "
            f"pictures upright, so it looks for them in other buckets and encodes them itself"
        )
    if planned.without_image:
        notes.append(
            f"{len(planned.without_image):,} have no image in {folder}, the first "
            f"{printable(planned.without_image[0])}: sd-scripts finds latents only beside their images"
        )
    return notes


def _listed(store: Store) -> list[str]:
    """Return the names that an earlier export into the folder listed."""
    if not is_marked_store(store, LATENTS_EXPORT):
        return []
    try:
        return [str(name) for name in json.loads(store.read(LATENTS_EXPORT.mark))["files"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{store.place(LATENTS_EXPORT.mark)} is damaged, so it isn't known what an earlier export wrote; take "
            f"another folder"
        ) from None
