"""Whether a folder of latents is what its index says, to the last bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldm_vae.latents.index import plan_digest, read_index
from ldm_vae.latents.mapping import read_origin
from ldm_vae.latents.sealed import read_sealed
from ldm_vae.latents.shards import CODEBOOK, INDEX, PLAN, SAMPLES, SKIPPED, ShardRecord, read_record
from ldm_vae.system.files import sha256_file
from ldm_vae.system.paths import OutsideFolder, inside

_LISTS = (SAMPLES, SKIPPED, CODEBOOK)

Kind = Literal["unfinished", "missing", "damaged", "duplicate", "foreign"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as it should be."""

    kind: Kind
    file: str
    detail: str
    is_surplus: bool = False
    """Whether the file doesn't belong to the output, so that encoding again leaves it where it is."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.file}: {self.detail}"


def check_folder(folder: Path, *, on_shard: Callable[[], object] = lambda: None) -> list[Problem]:
    """Read every byte of an output and return what is wrong with it.

    An output may be `unfinished`; files may be `missing`, `damaged` (cut off, or bits flipped), `duplicate` (a copy of
    another, or two rows of one image) or `foreign` (of another VAE or preprocessing, or not of this output).

    Args:
        folder: What `ldm-vae encode --output` wrote.
        on_shard: Called after each shard.

    Raises:
        ValueError: The folder is no output of `ldm-vae encode`.
    """
    problems: list[Problem] = []
    index = _read_index(folder, problems)
    digest = _read_plan_digest(folder, index, problems)
    shards = _entries(folder) if index is None else index["shards"]
    samples: Counter[int] = Counter()
    for entry in shards:
        record = read_record(folder, stem=Path(entry["file"]).stem, plan_digest=digest)
        problems += _shard_problems(folder, entry, record, digest=digest)
        samples.update(row.sample for row in (record.rows if record is not None else []))
        on_shard()
    for sample, times in samples.items():
        if times > 1:
            problems.append(Problem(kind="duplicate", file=INDEX, detail=f"image {sample} is there {times} times"))
    problems += _strangers(folder, known={entry["file"] for entry in shards}, digest=digest)
    for name, expected in ({} if index is None else index["files"]).items():
        if name in _LISTS and not (folder / name).exists():
            problems.append(Problem(kind="missing", file=name, detail="named in the index"))
        elif name in _LISTS and sha256_file(folder / name) != expected:
            problems.append(Problem(kind="damaged", file=name, detail="its digest isn't the one in the index"))
    return problems


def _read_index(folder: Path, problems: list[Problem]) -> dict[str, Any] | None:
    """Return the index; where there is none that is whole, say so."""
    try:
        return read_index(folder)
    except ValueError as error:
        if not (folder / INDEX).exists():
            if not (folder / PLAN).exists():
                raise
            problems.append(Problem(kind="unfinished", file=INDEX, detail="not written yet"))
        else:
            problems.append(Problem(kind="damaged", file=INDEX, detail=str(error)))
    return None


def _read_plan_digest(folder: Path, index: dict[str, Any] | None, problems: list[Problem]) -> str:
    """Return the digest of the output's plan: where plan.json is damaged, the one of the index or of most shards."""
    try:
        plan = read_sealed(folder / PLAN)
        digest = None if plan is None else plan_digest(plan)
        if digest is None:
            problems.append(Problem(kind="damaged", file=PLAN, detail="its digest isn't the one that it tells"))
    except FileNotFoundError:
        digest = None
        problems.append(Problem(kind="missing", file=PLAN, detail="the index is there without it"))
    except KeyError as error:
        raise ValueError(f"{folder / PLAN} has no {error}: it is no plan of `ldm-vae encode`") from None
    if index is not None:
        if digest is not None and digest != plan_digest(index):
            problems.append(Problem(kind="foreign", file=INDEX, detail=f"it doesn't agree with {PLAN}"))
        return digest or plan_digest(index)
    origins = [read_origin(path) for path in sorted(folder.glob("latents-*.safetensors"))]
    votes = Counter(origin["plan"] for origin in origins if origin is not None)
    return digest or (votes.most_common(1)[0][0] if votes else "")


def _entries(folder: Path) -> list[dict[str, Any]]:
    """Return what an index would name, where there is none."""
    paths = sorted(folder.glob("latents-*.safetensors"))
    return [{"file": path.name, "size": None, "sha256": None} for path in paths]


def _shard_problems(
    folder: Path, entry: dict[str, Any], record: ShardRecord | None, *, digest: str
) -> Iterator[Problem]:
    """Say what is wrong with a shard of the index."""

    def problem(kind: Kind, detail: str) -> Problem:
        return Problem(kind=kind, file=entry["file"], detail=detail)

    try:
        path = inside(folder, entry["file"], source=INDEX)
    except OutsideFolder as error:
        yield problem("foreign", str(error))
        return
    if not path.exists():
        yield problem("missing", "named in the index")
        return
    size = path.stat().st_size
    if entry["size"] is not None and size != entry["size"]:
        yield problem("damaged", f"{size} bytes instead of {entry['size']}")
        return
    sha256 = sha256_file(path)
    expected = entry["sha256"] or (record.sha256 if record is not None else None)
    if sha256 != expected:
        origin = read_origin(path)
        if origin is not None and origin["plan"] != digest:
            yield problem("foreign", "it belongs to another output")
        elif origin is not None and origin["stem"] != path.stem:
            yield problem("duplicate", f"it is a copy of {origin['stem']}")
        elif expected is None:
            yield problem("unfinished", "it has no record that can be read")
        else:
            yield problem("damaged", "its digest isn't the one in the index")
    elif record is None:
        yield Problem(kind="missing", file=f"{path.stem}.json", detail="the shard's record is missing or damaged")
    elif record.sha256 != sha256:
        yield Problem(kind="damaged", file=f"{path.stem}.json", detail="the record isn't this shard's")


def _strangers(folder: Path, *, known: set[str], digest: str) -> Iterator[Problem]:
    """Say what other safetensors files there are."""
    for path in sorted(folder.glob("*.safetensors")):
        if path.name in known:
            continue
        origin = read_origin(path)
        kind: Kind = "foreign"
        detail = "it is not in the index"
        if origin is not None and origin["plan"] == digest and f"{origin['stem']}.safetensors" in known:
            kind, detail = "duplicate", f"it is a copy of {origin['stem']}, not in the index"
        yield Problem(kind=kind, file=path.name, detail=detail, is_surplus=True)
