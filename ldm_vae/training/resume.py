"""Where a run starts: afresh, or from what an earlier one left in its folder."""

from __future__ import annotations

from pathlib import Path

from ldm_vae.config.parsing import dump_config
from ldm_vae.config.rules import FieldError
from ldm_vae.config.run import Config
from ldm_vae.images.streaming import StreamingImages
from ldm_vae.images.training import TrainingSamples
from ldm_vae.reporting.report import is_report
from ldm_vae.system.files import remove_temporaries, write_whole
from ldm_vae.training.checkpoint import RunPlan
from ldm_vae.training.checkpoint_files import find_checkpoint, latest_checkpoint, read_record
from ldm_vae.training.checkpoint_store import open_checkpoint_store
from ldm_vae.training.data_names import LONGEST_LIST, DataNames, describe_change, digest_names, read_names, write_names
from ldm_vae.training.run_folder import RunFolder, checkpoint_step, remove_checkpoint, set_aside
from ldm_vae.training.stages import config_before, kept_lines
from ldm_vae.training.tracking import rewind, settings_of

_NEVER_FALL = ("constant", "constant_with_warmup")  # learning-rate schedules that max_train_steps has no part in
# Settings that are about how a run is started, so that a difference in them is no change of the run.
_OF_THE_START = (
    "output_dir",
    "overwrite",
    "report",
    "data.changed",
    "train.checkpoint_store",
    "train.resume_from_checkpoint",
)


def choose_checkpoint(run: RunFolder, config: Config) -> Path | None:
    """Return the checkpoint that the run goes on from, or None where it starts from the beginning.

    Nothing is changed. Called by the main process.

    Raises:
        ValueError: The folder holds a run that the config neither resumes nor overwrites, or another's file where the
            report goes, or the checkpoint that the config names is missing or damaged.
    """
    if config.report and run.report.exists() and not is_report(run.report):
        raise FieldError(
            f"<output_dir>: {run.report} is no report of ldm-vae and would be replaced by one; move it, or give "
            f"<report> false"
        )
    name = config.train.resume_from_checkpoint
    store = open_checkpoint_store(run, config)
    if name is None:
        if store is not None and store.names() and not config.overwrite:
            raise FieldError(
                f"<train.checkpoint_store>: {store.store.place()} holds checkpoints; go on with "
                f"<train.resume_from_checkpoint> latest, or start anew with <overwrite> true"
            )
        if run.holds_run() and not config.overwrite:
            raise FieldError(
                f"<output_dir>: {run.path} holds a run; go on with <train.resume_from_checkpoint> latest, or start "
                f"anew with <overwrite> true"
            )
        return None
    if name == "latest":
        if store is not None:
            store.fetch_newest(report=print)
        checkpoint = latest_checkpoint(run, report=lambda line: print(f"{line}; the one before is taken"))
        if checkpoint is None:
            print(f"{run.path} holds no checkpoint yet: starting afresh")
        return checkpoint
    checkpoint = find_checkpoint(run, name)
    newer = run.checkpoints(after=checkpoint_step(checkpoint))
    if newer and not config.overwrite:
        raise FieldError(
            f"<train.resume_from_checkpoint>: {run.path} holds checkpoints after {checkpoint.name}, up to "
            f"{newer[-1].name}; give <overwrite> true to have them removed"
        )
    return checkpoint


def compare_data(
    run: RunFolder, config: Config, images: TrainingSamples | StreamingImages, *, checkpoint: Path | None
) -> DataNames:
    """Return the number and digest of the training images' names, after comparing them with the checkpoint's.

    Called by the main process.

    Raises:
        FieldError: The names differ, and data.changed is not `accept`.
    """
    now = digest_names(images.data_names())
    if checkpoint is None:
        return now
    before = read_record(checkpoint).data
    if before == now:
        return now
    change = describe_change(
        read_names(run.data_names, expected=before), list(images.data_names()), number_before=before.number
    )
    if config.data.changed == "refuse":
        raise FieldError(
            f"<data.train>: {config.data.train} is not what {checkpoint.name} was trained on: {change}. The order of "
            f"all images would change; give <data.changed> accept to go on with the new data, or bring the former "
            f"data back"
        )
    print(f"data.train is not what it was at {checkpoint.name}: {change}")
    return now


def begin_run(
    run: RunFolder,
    plan: RunPlan,
    images: TrainingSamples | StreamingImages,
    *,
    checkpoint: Path | None,
    learning_rates: dict[str, float],
) -> None:
    """Make the run's folder what it was at `checkpoint`, or empty where that is None, and write the run's config.

    Called by the main process once the checkpoint is loaded: a checkpoint that can't be loaded changes nothing.

    Args:
        run: The run's folder.
        plan: The settings, and what follows from them.
        images: The training images.
        checkpoint: The checkpoint that the run goes on from.
        learning_rates: Learning rates of the update before, by name, as today's settings give them.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    run.remove_interrupted()
    store = open_checkpoint_store(run, plan.config)
    if store is not None and plan.config.train.resume_from_checkpoint != "latest":  # it would go on from them
        store.remove_after(-1 if checkpoint is None else checkpoint_step(checkpoint))
    remove_temporaries(run.path, older_than=3600)
    if checkpoint is None:
        run.remove_run()
    else:
        for later in run.checkpoints(after=checkpoint_step(checkpoint)):
            if plan.config.train.resume_from_checkpoint == "latest":  # damaged, or it would be the latest
                set_aside(later)
            else:
                remove_checkpoint(later)
        rewind(run, step=checkpoint_step(checkpoint))
        for line in _changes(plan, checkpoint=checkpoint, learning_rates=learning_rates):
            print(line)
    if plan.data.number <= LONGEST_LIST and read_names(run.data_names, expected=plan.data) is None:
        write_names(run.data_names, images.data_names())
    write_whole(run.config, dump_config(plan.config).encode())


def _changes(plan: RunPlan, *, checkpoint: Path, learning_rates: dict[str, float]) -> list[str]:
    """Return a line for each setting that is not the checkpoint's, and for what silently follows from the change."""
    record, config, lines = read_record(checkpoint), plan.config, []
    before = config_before(checkpoint)
    if before is not None:
        old, new = settings_of(before), settings_of(config)
        # Of both, since a weight has one name as a number, and others as a ramp.
        names = [name for name in {**new, **old} if name not in _OF_THE_START]
        changed = [name for name in names if old.get(name, "None") != new.get(name, "None")]
        lines += [f"{name} is {new.get(name, 'absent')} now, after {old.get(name, 'absent')}" for name in changed]
        of_stage = plan.stage.config.train
        lengthened = any(name.endswith("train.max_train_steps") for name in changed)
        if lengthened and not plan.stage.begins and of_stage.lr_scheduler not in _NEVER_FALL:
            lines.append(
                f"train.lr_scheduler {of_stage.lr_scheduler} falls over all of train.max_train_steps, so from now "
                f"on it falls differently"
            )
    for name, rate in ({} if plan.stage.begins else learning_rates).items():
        rate_before = record.learning_rates.get(name, rate)
        if rate != rate_before:
            lines.append(f"{name} is {rate:.6g} after update {record.step} now, where it was {rate_before:.6g}")
    return lines + kept_lines(plan.stage, config)
