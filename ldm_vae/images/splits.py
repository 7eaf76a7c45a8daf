"""Splits: which one is meant where none is named, and slices of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from datasets import ReadInstruction

TRAINING_SPLITS = ("train", "training")
"""Names of the split to train on, to encode and to measure latents on, where none is named."""

HELD_OUT_SPLITS = ("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
"""Names of the split to validate on and to evaluate, where none is named; the first that there is."""


def choose_split(splits: Collection[str], *, split: str | None, held_out: bool, source: str) -> tuple[str, str | None]:
    """Return the split to use, perhaps with its slice, and what is to be told about the choice.

    Args:
        splits: The splits that there are.
        split: The split that the user names, perhaps with a slice such as `train[:100]`.
        held_out: Whether images are wanted that weren't trained on.
        source: What the data are called.

    Raises:
        ValueError: There is no such split, or none was named and the defaults leave it open.
    """
    names = ", ".join(sorted(splits))
    if split is not None:
        if split_name(split) in splits:
            return split, None
        raise ValueError(f"{source} has no split {split!r}; it has {names}")
    for name in HELD_OUT_SPLITS if held_out else TRAINING_SPLITS:
        if name in splits:
            return name, None
    for name in TRAINING_SPLITS:
        if name in splits:
            return name, f"{source} has no split for validation; its split {name!r} is used"
    if len(splits) == 1:
        name = next(iter(splits))
        return name, None if held_out else f"{source} has no split to train on; its only split {name!r} is used"
    raise ValueError(f"{source} has the splits {names}; choose one by the split option")


def split_name(split: str) -> str:
    """Return the name of a split without its slice."""
    return split.partition("[")[0]


def split_range(split: str, lengths: Mapping[str, int]) -> range:
    """Return which rows of its split a split with or without a slice stands for.

    Args:
        split: As `datasets` writes it: `train`, `train[:100]`, `train[10%:20%]`.
        lengths: Number of rows of each split.

    Raises:
        ValueError: It isn't written like that, or leaves no row.
    """
    name = split_name(split)
    if split == name:
        return range(lengths[name])
    try:
        (absolute,) = ReadInstruction.from_spec(split).to_absolute(dict(lengths))
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{split!r} is no slice of a split, such as {name}[:100] or {name}[10%:20%]") from error
    start, stop, _ = slice(absolute.from_, absolute.to).indices(lengths[name])
    if start >= stop and lengths[name] > 0:
        raise ValueError(f"the slice {split!r} holds no row; {name} has {lengths[name]:,}")
    return range(start, max(start, stop))
