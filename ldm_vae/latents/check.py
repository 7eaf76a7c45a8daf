"""Whether a folder of latents is what its index says, to the last bit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldm_vae.latents.shards import INDEX, PLAN, SAMPLES, SKIPPED, ShardRecord, plan_digest, read_record
from ldm_vae.system.files import sha256_file

Kind = Literal["unfinished", "missing", "damaged", "duplicate", "foreign"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as it should be."""

    kind: Kind
    file: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.file}: {self.detail}"


def check_folder(folder: Path, *, on_shard: Callable[[], object] = lambda: None) -> list[Problem]:
    """Read every byte of an output and return what is wrong with it: `unfinished` outputs, shards that are `missing`,
    `damaged` (cut off, or bits flipped), `duplicate` (a copy of another, or two rows of one image) or `foreign` (of
    another VAE or preprocessing, or not of this output).

    Args:
        on_shard: called after each shard.

    Raises:
        ValueError: the folder is no output of `ldm-vae encode`.
    """
    plan = _read_json(folder / PLAN)
    if plan is None:
        raise ValueError(f"{folder} has no {PLAN} that can be read: it is no folder that `ldm-vae encode` wrote")
    digest = plan_digest(plan)
    index = _read_json(folder / INDEX)
    problems = []
    if index is None:
        detail = "missing or damaged; start the same encode again, it does the rest"
        problems.append(Problem(kind="unfinished", file=INDEX, detail=detail))
        index = {"shards": [_entry(path) for path in sorted(folder.glob("latents-*.safetensors"))], "files": {}}
    elif {key: index.get(key) for key in plan} != plan:
        problems.append(Problem(kind="foreign", file=INDEX, detail=f"it doesn't agree with {PLAN}"))
    samples: Counter[int] = Counter()
    for entry in index["shards"]:
        record = read_record(folder, stem=Path(entry["file"]).stem, plan_digest=digest)
        found = list(_shard_problems(folder, entry, record, digest=digest))
        problems += found
        samples.update(row.sample for row in (record.rows if record is not None else []))
        on_shard()
    for sample, times in samples.items():
        if times > 1:
            problems.append(Problem(kind="duplicate", file=INDEX, detail=f"image {sample} is there {times} times"))
    problems += _strangers(folder, known={entry["file"]: entry for entry in index["shards"]}, digest=digest)
    for name in (SAMPLES, SKIPPED):
        expected = index["files"].get(name)
        if expected is not None and not (folder / name).exists():
            problems.append(Problem(kind="missing", file=name, detail="named in the index"))
        elif expected is not None and sha256_file(folder / name) != expected:
            problems.append(Problem(kind="damaged", file=name, detail="its digest isn't the one in the index"))
    return problems


def _entry(path: Path) -> dict[str, Any]:
    return {"file": path.name, "size": None, "sha256": None}


def _shard_problems(
    folder: Path, entry: dict[str, Any], record: ShardRecord | None, *, digest: str
) -> Iterator[Problem]:
    """Say what is wrong with a shard of the index."""
    path = folder / entry["file"]

    def problem(kind: Kind, detail: str) -> Problem:
        return Problem(kind=kind, file=path.name, detail=detail)

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


def _strangers(folder: Path, *, known: dict[str, dict[str, Any]], digest: str) -> Iterator[Problem]:
    """Say what other safetensors files there are."""
    for path in sorted(folder.glob("*.safetensors")):
        if path.name in known:
            continue
        origin = read_origin(path)
        if origin is not None and origin["plan"] == digest and f"{origin['stem']}.safetensors" in known:
            detail = f"it is a copy of {origin['stem']}, not in the index"
            yield Problem(kind="duplicate", file=path.name, detail=detail)
        else:
            yield Problem(kind="foreign", file=path.name, detail="it is not in the index")


def read_origin(path: Path) -> dict[str, str] | None:
    """Return a shard's own account of its `plan` and `stem`; none where it has none that can be read."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 1 << 24)))
        origin = json.loads(header["__metadata__"]["ldm_vae"])
        return {"plan": origin["plan"], "stem": origin["stem"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None
