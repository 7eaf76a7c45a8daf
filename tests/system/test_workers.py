"""Workers that die while the process waits for what they prepare."""

from __future__ import annotations

import os
import time
from typing import NoReturn

import pytest
from torch.utils.data import DataLoader, Dataset

from ldm_vae.system.guarded import DataWorkerError
from ldm_vae.system.watch import at_work, refusal
from ldm_vae.system.workers import load

LETHAL = "picture 1"


def cut_off() -> NoReturn:
    raise EOFError


def die_slowly() -> NoReturn:
    """End as the kernel ends a process: its files are closed first, and a moment later it is dead."""
    time.sleep(0.5)
    os.closerange(3, 256)
    time.sleep(0.5)
    os._exit(1)


class CutOff:
    """What a process reads of something whose sender is dying."""

    def __reduce__(self) -> tuple[object, ...]:
        return cut_off, ()


class DyingWhileHandingOver(Dataset):
    """Sample 0 breaks off on its way to the process, and its worker dies a moment later, at sample 1."""

    def __init__(self, *, named: bool) -> None:
        self.named = named

    def __getitem__(self, index: int) -> object:
        if self.named and refusal(LETHAL) is not None:
            return f"refused: {refusal(LETHAL)}" if index == 1 else f"sample {index}"
        if index == 0:
            return CutOff()
        if self.named:
            with at_work(LETHAL, seconds=60):
                die_slowly()
        die_slowly()


def prepared(dataset: Dataset) -> list[object]:
    batches = load(
        dataset,
        collate=lambda samples: samples[0],
        num_workers=1,
        timeout_seconds=30,
        pin_memory=False,
        batch_sampler=[[0], [1], [2]],
    )
    return list(batches)


@pytest.fixture(scope="module", autouse=True)
def another_loader() -> None:
    """One that sets torch's handler for dead workers in this process."""
    assert len(list(DataLoader(range(2), num_workers=1))) == 2  # type: ignore[arg-type, var-annotated]


def test_a_worker_that_is_still_dying_is_seen_and_what_it_was_at_refused() -> None:
    reason = "the process that decoded it died"
    assert prepared(DyingWhileHandingOver(named=True)) == ["sample 0", f"refused: {reason}", "sample 2"]


def test_a_worker_that_dies_at_nothing_it_named_is_an_error() -> None:
    with pytest.raises(DataWorkerError, match="a data worker died") as raised:
        prepared(DyingWhileHandingOver(named=False))
    assert "\n" not in str(raised.value)
