"""The kinds of folders that commands write, and how each is known."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

REPORT = "report.html"
"""The page that `report` makes, in the folder whose results it shows."""
MARK_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class OutputKind:
    """A kind of folder that a command writes."""

    what: str
    """What the folder is, with its article, for messages."""
    mark: str
    """The file that shows a folder to be of this kind: written last where the folder appears at once, else first."""
    says: bytes
    """Regular expression of what the mark's first 4 KiB contain: a file of this name by somebody else is no mark."""
    parts: tuple[str, ...]
    """Patterns of the names of all that the command writes directly into the folder."""
    alone: bool
    """Whether the folder may hold nothing else. Where it may, other things stay when it is replaced."""

    @property
    def noun(self) -> str:
        """The kind without its article."""
        return self.what.partition(" ")[2]

    def is_said_in(self, beginning: bytes) -> bool:
        """Whether the beginning of a file of the mark's name is that of a mark."""
        return re.search(self.says, beginning) is not None

    def owns(self, name: str) -> bool:
        """Whether a name in the folder is one that the command writes."""
        return any(fnmatchcase(name, part) for part in (self.mark, *self.parts))


RUN = OutputKind(
    what="a run", mark="config.yaml", says=b"output_dir:",
    parts=(
        "metrics.jsonl", "skipped.jsonl", "data_names.txt.gz", "samples", "logs", REPORT,
        "checkpoint-*", ".checkpoint-*",
    ),
    alone=False,
)  # fmt: skip
EXPORT = OutputKind(
    what="an export", mark="config.json", says=b'"(Autoencoder|VQModel)',
    parts=("diffusion_pytorch_model*", "README.md", "measurements.json", "reconstruction.png", ".gitattributes"),
    alone=True,
)  # fmt: skip
LATENTS = OutputKind(
    what="an encode", mark="plan.json", says=b"ldm-vae latents",
    parts=(
        "index.json", "samples.jsonl", "skipped.jsonl", "headers.jsonl", "codebook.npy", "shards.npy",
        "latents-[0-9]*.safetensors", "latents-[0-9]*.json",
    ),
    alone=False,
)  # fmt: skip
HIDDEN = ".ldm-vae-encode-"
"""What an encode's own files begin with beside shards in another trainer's layout, whose readers pass over them."""
LAID_OUT_LATENTS = OutputKind(
    what="an encode in another layout", mark=f"{HIDDEN}plan.json", says=b"ldm-vae latents",
    parts=(
        f"{HIDDEN}[!.]*", "codebook.npy", "index.json", "latents_stats.pt", "latents_rank00_shard[0-9]*.safetensors",
        "shard.[0-9]*.mds", "train-[0-9]*.parquet", "latents-[0-9]*.tar",
    ),
    alone=False,
)  # fmt: skip
LATENTS_EXPORT = OutputKind(
    what="a latents export", mark=".ldm-vae-latents-export", says=b'"layout":', parts=(), alone=False
)
DECODED = OutputKind(what="a decode", mark="pictures.jsonl", says=b'"picture":', parts=("skipped.jsonl",), alone=False)
EVALUATION = OutputKind(
    what="an evaluation", mark="metrics.json", says=b'"options"',
    parts=("table.md", "grid*.png", "per_picture.jsonl", "pictures", REPORT), alone=True,
)  # fmt: skip
SOUNDS = OutputKind(
    what="a folder of decoded sounds", mark="sounds.jsonl", says=b'"decoded":', alone=True,
    parts=("[0-9]*-decoded.wav", "[0-9]*-original.wav", "skipped.jsonl"),
)  # fmt: skip
PROBE = OutputKind(
    what="a probe", mark="probe.json", says=b'"kind": "probe"',
    parts=("metrics.json", "table.md", "samples.png", REPORT, "work"), alone=False,
)  # fmt: skip
DENSITY = OutputKind(
    what="a density", mark="metrics.json", says=b'"kind": "density"', parts=("table.md", "per_picture.jsonl"),
    alone=True,
)  # fmt: skip
SCORES = OutputKind(
    what="a folder of scores", mark="scores.jsonl", says=b'"above":',
    parts=("normal.jsonl", "metrics.json", "table.md", "maps", "pictures", REPORT), alone=True,
)  # fmt: skip
QUICKSTART = OutputKind(
    what="a quickstart", mark=".ldm-vae-quickstart", says=b"", alone=True,
    parts=("photographs", "run", "export", "latents", "decoded", "evaluation", REPORT),
)  # fmt: skip
EXPLORATION = OutputKind(
    what="an exploration", mark="explore.json", says=b'"explore":', alone=True,
    parts=(
        "pictures", "grid.png", "linear.png", "linear.webp", "spherical.png", "spherical.webp", "neighbours.json",
        "direction.safetensors", "work",
    ),
)  # fmt: skip
AUGMENTATION = OutputKind(
    what="an augmentation", mark="augmented.json", says=b'"augmented":', parts=("skipped.jsonl",), alone=False
)
KINDS = (
    RUN, EXPORT, LATENTS, LAID_OUT_LATENTS, LATENTS_EXPORT, DECODED, EVALUATION, SOUNDS, PROBE, DENSITY, SCORES,
    QUICKSTART, EXPLORATION, AUGMENTATION,
)  # fmt: skip


def output_kind(folder: str | Path) -> OutputKind | None:
    """Return the kind of output that a folder is, by its mark; None for a folder that no command wrote."""
    return next((kind for kind in KINDS if is_marked(folder, kind)), None)


def is_marked(folder: str | Path, kind: OutputKind) -> bool:
    """Whether a folder holds the mark of a kind of output."""
    try:
        with open(Path(folder, kind.mark), "rb") as file:
            return kind.is_said_in(file.read(MARK_BYTES))
    except OSError:
        return False
