"""Whether a folder of latents is what its index says, to the last bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, TypeVar

from ldm_vae.latents.index import plan_digest, read_index
from ldm_vae.latents.laid_out import LaidOutStore, layout_lists, open_output_store
from ldm_vae.latents.mapping import read_origin
from ldm_vae.latents.sealed import read_sealed
from ldm_vae.latents.shard_table import ShardTable
from ldm_vae.latents.shards import CODEBOOK, INDEX, PLAN, SAMPLES, SHARDS, SKIPPED, ShardRecord, read_record
from ldm_vae.system.paths import OutsideFolder, inside
from ldm_vae.system.store import Store

T = TypeVar("T")
R = TypeVar("R")

_LISTS = (SAMPLES, SKIPPED, CODEBOOK, SHARDS)

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


def check_folder(
    folder: Path | Store, *, on_shard: Callable[[], object] = lambda: None, each: Each | None = None
) -> list[Problem]:
    """Read every byte of an output and return what is wrong with it.

    An output may be `unfinished`; files may be `missing`, `damaged` (cut off, or bits flipped), `duplicate` (a copy of
    another, or two rows of one image) or `foreign` (of another VAE or preprocessing, or not of this output).

    Args:
        folder: What `ldm-vae encode --output` wrote.
        on_shard: Called after each shard.
        each: Calls a function on each shard, anywhere, and yields the results in order; None for here.

    Raises:
        ValueError: The folder is no output of `ldm-vae encode`.
    """
    store = open_output_store(folder)
    problems: list[Problem] = []
    index, shards = _read_index(store, problems)
    digest = _read_plan_digest(store, index, problems)
    if shards is None:
        shards = [{"file": name, "size": None, "sha256": None} for name in _shard_files(store)]
    samples = _Samples()

    def check(entry: Mapping[str, Any]) -> tuple[ShardRecord | None, list[Problem]]:
        record = read_record(store, stem=PurePosixPath(entry["file"]).stem, plan_digest=digest)
        return record, list(_shard_problems(store, entry, record, digest=digest))

    for record, found in (each or store.each)(check, shards):
        problems += found
        samples.add(record)
        on_shard()
    problems += samples.duplicates()
    problems += _strangers(store, known={entry["file"] for entry in shards}, digest=digest)
    lists = (*_LISTS, *layout_lists(store))
    for name, expected in ({} if index is None else index["files"]).items():
        if name in lists and not store.exists(name):
            problems.append(Problem(kind="missing", file=name, detail="named in the index"))
        elif name in lists and store.sha256(name) != expected:
            problems.append(Problem(kind="damaged", file=name, detail="its digest isn't the one in the index"))
    problems = [replace(problem, file=store.called(problem.file)) for problem in problems]
    strays = store.strays() if isinstance(store, LaidOutStore) else []
    return problems + [
        Problem(kind="foreign", file=name, detail="it is no shard of this output", is_surplus=True) for name in strays
    ]


class Each(Protocol):
    """Something like `map`."""

    def __call__(self, function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
        """Yield the function's results, in order."""


class _Samples:
    """The numbers of the images that have rows, and those that come twice; runs of numbers take no room a number."""

    def __init__(self) -> None:
        self._runs: list[range] = []
        self._times: Counter[int] = Counter()

    def add(self, record: ShardRecord | None) -> None:
        """Take the rows of a shard."""
        numbers = [row.sample for row in record.rows] if record is not None else []
        if numbers == list(range(numbers[0], numbers[-1] + 1) if numbers else []):
            self._runs += [range(numbers[0], numbers[-1] + 1)] if numbers else []
        else:
            self._times.update(numbers)

    def duplicates(self) -> list[Problem]:
        """Say which images are there more than once."""
        end = None
        for run in sorted(self._runs, key=lambda run: run.start):
            if self._times or (end is not None and run.start < end):  # rare: then each number is counted
                for each in self._runs:
                    self._times.update(each)
                break
            end = run.stop
        return [
            Problem(kind="duplicate", file=INDEX, detail=f"image {sample} is there {times} times")
            for sample, times in self._times.items()
            if times > 1
        ]


def _shard_files(store: Store) -> list[str]:
    """Return the names of what may be shards."""
    return [name for name in store.names() if fnmatchcase(name, "latents-*.safetensors")]


def _read_index(
    store: Store, problems: list[Problem]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]] | ShardTable | None]:
    """Return the index and its shards; where there is none that is whole, say so."""
    try:
        index = read_index(store)
        return index, ShardTable.of(index, store)
    except ValueError as error:
        if not store.exists(INDEX):
            if not store.exists(PLAN):
                raise
            problems.append(Problem(kind="unfinished", file=INDEX, detail="not written yet"))
        else:
            problems.append(Problem(kind="damaged", file=INDEX, detail=str(error)))
    return None, None


def _read_plan_digest(store: Store, index: dict[str, Any] | None, problems: list[Problem]) -> str:
    """Return the digest of the output's plan: where plan.json is damaged, the one of the index or of most shards."""
    try:
        plan = read_sealed(store, PLAN)
        digest = None if plan is None else plan_digest(plan)
        if digest is None:
            problems.append(Problem(kind="damaged", file=PLAN, detail="its digest isn't the one that it tells"))
    except FileNotFoundError:
        digest = None
        problems.append(Problem(kind="missing", file=PLAN, detail="the index is there without it"))
    except KeyError as error:
        raise ValueError(f"{store.place(PLAN)} has no {error}: it is no plan of `ldm-vae encode`") from None
    if index is not None:
        if digest is not None and digest != plan_digest(index):
            problems.append(Problem(kind="foreign", file=INDEX, detail=f"it doesn't agree with {PLAN}"))
        return digest or plan_digest(index)
    if digest is not None:
        return digest
    votes = Counter(origin["plan"] for name in _shard_files(store) if (origin := read_origin(store, name)) is not None)
    return votes.most_common(1)[0][0] if votes else ""


def _shard_problems(
    store: Store, entry: Mapping[str, Any], record: ShardRecord | None, *, digest: str
) -> Iterator[Problem]:
    """Say what is wrong with a shard of the index."""
    name, stem = entry["file"], PurePosixPath(entry["file"]).stem

    def problem(kind: Kind, detail: str) -> Problem:
        return Problem(kind=kind, file=name, detail=detail)

    if store.folder is not None:
        try:
            inside(store.folder, store.called(name), source=INDEX)
        except OutsideFolder as error:
            yield problem("foreign", str(error))
            return
    try:
        size = store.size(name)
    except FileNotFoundError:
        yield problem("missing", "named in the index")
        return
    if entry["size"] is not None and size != entry["size"]:
        yield problem("damaged", f"{size} bytes instead of {entry['size']}")
        return
    sha256 = store.sha256(name)
    expected = entry["sha256"] or (record.sha256 if record is not None else None)
    if sha256 != expected:
        origin = read_origin(store, name)
        if origin is not None and origin["plan"] != digest:
            yield problem("foreign", "it belongs to another output")
        elif origin is not None and origin["stem"] != stem:
            yield problem("duplicate", f"it is a copy of {origin['stem']}")
        elif expected is None:
            yield problem("unfinished", "it has no record that can be read")
        else:
            yield problem("damaged", "its digest isn't the one in the index")
    elif record is None:
        yield Problem(kind="missing", file=f"{stem}.json", detail="the shard's record is missing or damaged")
    elif record.sha256 != sha256:
        yield Problem(kind="damaged", file=f"{stem}.json", detail="the record isn't this shard's")


def _strangers(store: Store, *, known: Container[str], digest: str) -> Iterator[Problem]:
    """Say what other safetensors files there are."""
    for name in store.names():
        if not name.endswith(".safetensors") or name in known:
            continue
        origin = read_origin(store, name)
        kind: Kind = "foreign"
        detail = "it is not in the index"
        if origin is not None and origin["plan"] == digest and f"{origin['stem']}.safetensors" in known:
            kind, detail = "duplicate", f"it is a copy of {origin['stem']}, not in the index"
        yield Problem(kind=kind, file=name, detail=detail, is_surplus=True)
