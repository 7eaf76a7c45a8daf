"""The stages of a run: which one comes next, and what it keeps to although the settings have changed since."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ldm_vae.config.parsing import load_config
from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.config.stages import flat_settings
from ldm_vae.training.checkpoint_files import CONFIG, CheckpointRecord, read_record


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a run as it began; a run without a row of stages is one."""

    config: Config
    """All its settings; `loss.disc_start` is a number of its updates."""
    number: int
    """Its place in the run's row, from 0."""
    first_step: int
    """Updates of the run before it."""
    early_stages: list[tuple[int, int]]
    """Early resolutions as (update of the run, resolution): the side that images have before the update."""
    begins: bool
    """Whether it begins here, rather than going on from one of its own checkpoints."""

    @property
    def last_step(self) -> int:
        """Updates of the run once it is over."""
        return self.first_step + self.config.train.max_train_steps

    @property
    def disc_start(self) -> int:
        """Its updates before the discriminator is trained."""
        return int(self.config.loss.disc_start)


def next_stage(config: Config, *, checkpoint: Path | None) -> Stage:
    """Return the stage that a run is in after a checkpoint, or its first one.

    A stage keeps what it began with: its first update, and where its early resolutions end and its discriminator
    starts, unless the settings of these were changed themselves. Those that are parts of train.max_train_steps would
    move if that is raised, and a run would go back to what it has left behind.

    Raises:
        FieldError: The checkpoint is of a stage that the run hasn't.
    """
    if checkpoint is None:
        return _begun(config, number=0, first_step=0)
    record = read_record(checkpoint)
    require(
        record.stage < len(config.row),
        f"<train.resume_from_checkpoint>: {checkpoint.name} is of stage {record.stage + 1}, but the run has "
        f"{len(config.row)} now; give its config the stages that it had",
    )
    stage = _begun(config, number=record.stage, first_step=record.stage_start)
    if record.step >= stage.last_step and record.stage + 1 < len(config.row):
        return _begun(config, number=record.stage + 1, first_step=record.step)
    return _kept(stage, record, asked=config.row[record.stage], before=config_before(checkpoint))


def _begun(config: Config, *, number: int, first_step: int) -> Stage:
    """Return a stage that begins after so many updates of the run."""
    own = config.row[number]
    start = own.loss.disc_start_update(own.train.max_train_steps)
    return Stage(
        config=_with_disc_start(own, start),
        number=number,
        first_step=first_step,
        early_stages=[(first_step + update, side) for update, side in own.early_stages],
        begins=True,
    )


def _kept(stage: Stage, record: CheckpointRecord, *, asked: Config, before: Config | None) -> Stage:
    """Return a stage that goes on, with what its checkpoint says of how it began.

    Args:
        stage: The stage as it would begin now.
        record: The checkpoint's record.
        asked: Its settings now.
        before: The run's settings at the checkpoint; None where they can't be read.
    """
    same_stages = [side for _, side in record.early_stages] == asked.data.early_resolutions
    same_start = True
    if before is not None and record.stage < len(before.row):
        own = before.row[record.stage]
        same_stages = (own.data.early_resolutions, own.data.early_fractions) == (
            asked.data.early_resolutions,
            asked.data.early_fractions,
        )
        same_start = own.loss.disc_start == asked.loss.disc_start
    if same_start and record.disc_start is not None:
        stage = replace(stage, config=_with_disc_start(stage.config, record.disc_start))
    return replace(stage, early_stages=record.early_stages if same_stages else stage.early_stages, begins=False)


def _with_disc_start(config: Config, update: int) -> Config:
    return replace(config, loss=replace(config.loss, disc_start=update))


def config_before(checkpoint: Path) -> Config | None:
    """Return the run's settings at a checkpoint; None where another version wrote them."""
    try:
        return load_config(checkpoint / CONFIG)
    except ValueError:
        return None


def kept_lines(stage: Stage, config: Config) -> list[str]:
    """Return a line for each thing of a stage that is as it began and not as the run's settings would have it now."""
    asked = _begun(config, number=stage.number, first_step=stage.first_step)
    lines = []
    if stage.early_stages != asked.early_stages:
        ends = ", ".join(f"{side} pixels before update {update}" for update, side in stage.early_stages)
        lines.append(f"the early stages stay as the run began them: {ends}")
    if stage.disc_start != asked.disc_start:
        begun = stage.first_step + stage.disc_start
        lines.append(f"the discriminator's start stays as the run began it: after update {begun}")
    before = sum(each.train.max_train_steps for each in config.row[: stage.number])
    if stage.first_step != before:
        lines.append(
            f"stage {stage.number + 1} stays begun after update {stage.first_step}, where the stages before it have "
            f"{before} updates now"
        )
    return lines


def opening_lines(stage: Stage, config: Config) -> list[str]:
    """Return lines about a stage: which it is, what it changes, and where a discriminator comes in by a part."""
    lines = []
    if len(config.row) > 1:
        line = f"Stage {stage.number + 1} of {len(config.row)}: updates {stage.first_step + 1} to {stage.last_step}"
        if stage.begins and stage.number > 0:
            old, new = flat_settings(config.row[stage.number - 1]), flat_settings(config.row[stage.number])
            changed = [name for name in new if new[name] != old[name]]
            changes = [f"{name} is {_shown(new[name])} now, after {_shown(old[name])}" for name in changed]
            line = "; ".join([f"{line}, from the averaged weights" if _averages(old) else line, *changes])
        lines.append(line)
    asked = config.row[stage.number].loss
    if asked.disc_weight > 0 and 0 < asked.disc_start < 1:
        begun = stage.first_step + stage.disc_start
        lines.append(f"loss.disc_start {asked.disc_start:g}: the discriminator is trained after update {begun}")
    return lines


def _shown(value: object) -> str:
    """Return a setting as messages show it; of a ramp, the fields that are set."""
    if not isinstance(value, dict):
        return str(value)
    return f"{{{', '.join(f'{name}: {part}' for name, part in value.items() if part is not None)}}}"


def _averages(settings: dict[str, object]) -> bool:
    return settings["train.ema_decay"] != 0
