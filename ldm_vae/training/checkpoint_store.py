"""Checkpoints beside the run's folder: uploaded whole to a store, and fetched where the folder has none so new."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ldm_vae.config.rules import FieldError
from ldm_vae.config.run import Config
from ldm_vae.system.paths import inside
from ldm_vae.system.places import open_store
from ldm_vae.system.store import Store, StoreError
from ldm_vae.system.text import one_line
from ldm_vae.training.checkpoint_files import MANIFEST, CheckpointError, check_whole
from ldm_vae.training.run_folder import RunFolder, checkpoint_step

_FOLDER = re.compile(r"checkpoint-\d{6,}/")


def open_checkpoint_store(run: RunFolder, config: Config) -> CheckpointStore | None:
    """Return where a run's checkpoints are kept beside its folder; None where they aren't."""
    address = config.train.checkpoint_store
    return None if address is None else CheckpointStore(address, run)


def upload_checkpoint(
    run: RunFolder, config: Config, checkpoint: Path, *, before: list[Path], say: Callable[[str], None]
) -> None:
    """Upload a checkpoint that was just written, if that is wanted, and remove those that were removed here.

    Args:
        run: The run.
        config: Its settings.
        checkpoint: The checkpoint.
        before: The run's checkpoints before it was written, some of which are removed now.
        say: Called with a line for what goes wrong, which is no reason to stop: the checkpoint is in the run's folder.
    """
    store = open_checkpoint_store(run, config)
    if store is None:
        return
    try:
        store.upload(checkpoint)
        for path in before:
            if not path.exists():
                store.remove(path.name)
    except OSError as error:
        say(f"{checkpoint.name} is in {run.path}, but was not uploaded: {one_line(error)}")


class CheckpointStore:
    """Where a run's checkpoints are kept beside its folder.

    A checkpoint's manifest is uploaded last and removed first, so one that is cut off has none; what a manifest names
    must have the digests that it states. With the checkpoints go the run's settings, figures and lists.

    Args:
        address: A folder or an address.
        run: The run's own folder.
    """

    def __init__(self, address: str, run: RunFolder) -> None:
        try:
            self.store: Store = open_store(address)
        except StoreError as error:
            raise FieldError(f"<train.checkpoint_store> {error}") from None
        self._run = run

    def upload(self, checkpoint: Path) -> None:
        """Upload a whole checkpoint, and the run's lists as they are now.

        Raises:
            OSError: The store can't be written.
        """
        for path in self._lists():
            if path.exists():
                self._put(path.name, path)
        self.store.remove(f"{checkpoint.name}/{MANIFEST}")  # of an earlier one of this step
        for path in sorted(checkpoint.iterdir(), key=lambda path: path.name == MANIFEST):
            self._put(f"{checkpoint.name}/{path.name}", path)

    def remove(self, name: str) -> None:
        """Remove a checkpoint, if it is there.

        Raises:
            OSError: The store can't be written.
        """
        files = open_store(self.store.place(name)).names() if name in self.names() else []
        for file in sorted(files, key=lambda file: file != MANIFEST):
            self.store.remove(f"{name}/{file}")

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of steps beyond `step`: no run goes on from them any more.

        Raises:
            OSError: The store can't be written.
        """
        for name in self.names():
            if checkpoint_step(Path(name)) > step:
                self.remove(name)

    def fetch_newest(self, *, report: Callable[[str], None]) -> Path | None:
        """Fetch the newest whole checkpoint into the run's folder, unless that holds it or a newer one.

        Args:
            report: Called with a line for what is fetched, and for each newer one that isn't whole.

        Returns:
            The checkpoint that was fetched, if any.

        Raises:
            OSError: The store can't be read.
        """
        newest_here = max(map(checkpoint_step, self._whole_here()), default=-1)
        for name in reversed(self.names()):
            if checkpoint_step(Path(name)) <= newest_here:
                return None
            try:
                checkpoint = self._fetch(name)
            except CheckpointError as error:
                report(f"{error}; the one before is taken")
                continue
            report(f"{name} was fetched from {self.store.place()}")
            return checkpoint
        return None

    def names(self) -> list[str]:
        """Return the names of the checkpoints that are there, oldest first, whole or not."""
        names = [name.rstrip("/") for name in self.store.sizes() if _FOLDER.fullmatch(name)]
        return sorted(names, key=lambda name: checkpoint_step(Path(name)))

    def _whole_here(self) -> list[Path]:
        whole = []
        for checkpoint in self._run.checkpoints():
            try:
                check_whole(checkpoint)
            except CheckpointError:
                continue
            whole.append(checkpoint)
        return whole

    def _fetch(self, name: str) -> Path:
        """Fetch a checkpoint under another name, compare it with its manifest, and give it its own."""
        step = checkpoint_step(Path(name))
        final, unfinished = self._run.checkpoint(step), self._run.unfinished_checkpoint(step) / name
        shutil.rmtree(unfinished.parent, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            try:
                manifest = json.loads(self.store.read(f"{name}/{MANIFEST}"))
                for file in [*manifest, MANIFEST]:
                    self.store.fetch(f"{name}/{file}", inside(unfinished, file, source=MANIFEST))
            except (FileNotFoundError, ValueError, TypeError):
                raise CheckpointError(f"{self.store.place(name)} is not whole") from None
            check_whole(unfinished)
            shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step
            unfinished.rename(final)
        finally:
            shutil.rmtree(unfinished.parent, ignore_errors=True)
        for path in self._lists():
            if not path.exists() and self.store.exists(path.name):
                self.store.fetch(path.name, path)
        return final

    def _lists(self) -> list[Path]:
        return [self._run.config, self._run.metrics, self._run.skipped, self._run.data_names]

    def _put(self, name: str, path: Path) -> None:
        with self.store.writing(name) as temporary:
            shutil.copyfile(path, temporary)
