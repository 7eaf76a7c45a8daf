"""A training run, from its config to its last checkpoint."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ldm_vae.config.paths import resolve_paths
from ldm_vae.config.run import Config
from ldm_vae.losses.rate import PosteriorSummary, summarise_posterior
from ldm_vae.metrics.latents import ACTIVE_VARIANCE
from ldm_vae.reporting.report import write_report
from ldm_vae.system.telling import counted
from ldm_vae.training.capacity import explained_memory
from ldm_vae.training.checkpoint import RunPlan, save_checkpoint
from ldm_vae.training.checkpoint_files import remove_old_checkpoints
from ldm_vae.training.checkpoint_store import upload_checkpoint
from ldm_vae.training.health import Health, NonFiniteError
from ldm_vae.training.inputs import open_data
from ldm_vae.training.opening import OpenStage, Session, open_stage, try_later_stages
from ldm_vae.training.panel import log_panel
from ldm_vae.training.processes import Processes, check_ranks_agree, join_processes, told_once, waiting_for_others
from ldm_vae.training.resume import choose_checkpoint
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.signals import StopSignal
from ldm_vae.training.soundness import why_unsound
from ldm_vae.training.stages import Stage, next_stage
from ldm_vae.training.state import TrainingState
from ldm_vae.training.summary import TrainSummary, kept_words
from ldm_vae.training.tracking import Tracking
from ldm_vae.training.validation import best_validation, draw_samples, validate, validation_figures


def train(config: Config) -> TrainSummary:
    """Train as `config` says, from the start or from a checkpoint, one stage after the other.

    Raises:
        ValueError: The config or the data are wrong; the message says so in one line.
        NonFiniteError: Too many updates in a row were not finite, or the last ones weren't. The checkpoint that was
            saved before them is kept.
        LostProcessError: Another process is gone.
        RanksDifferError: A process has other weights than the rest.
    """
    run = RunFolder(Path(config.output_dir))
    config = resolve_paths(config)
    processes = join_processes(config)
    checkpoint = processes.on_main(lambda: choose_checkpoint(run, config), purpose="to find the checkpoint")
    session = Session(run=run, config=config, processes=processes, data=open_data(config))
    with told_once():
        stage = next_stage(config, checkpoint=checkpoint)
    try_later_stages(session, after=stage)

    with contextlib.ExitStack() as closing:
        summary = train_stage(session, stage, checkpoint=checkpoint, closing=closing)
        while stage.number + 1 < len(config.row) and not summary.stopped_by:
            # The next stage begins from the checkpoint on the disk, as it would after an interruption.
            processes.accelerator.free_memory()
            stage = next_stage(config, checkpoint=summary.checkpoint)
            summary = train_stage(session, stage, checkpoint=summary.checkpoint, closing=closing)
    processes.accelerator.state.destroy_process_group()  # never after an error: it could wait for lost processes
    if not config.report:
        return summary
    if processes.accelerator.is_main_process:
        write_report([run.path])
    return replace(summary, report=run.report)


def train_stage(
    session: Session, stage: Stage, *, checkpoint: Path | None, closing: contextlib.ExitStack
) -> TrainSummary:
    """Train a stage to its end or to a signal.

    Args:
        session: What the stages share.
        stage: The stage.
        checkpoint: One of its own that it goes on from, or the last one of the stage before; None for a new run.
        closing: Closes the tracking at the end of the run.
    """
    run, processes, config = session.run, session.processes, stage.config
    opened = open_stage(session, stage, checkpoint=checkpoint, closing=closing)
    state, tracking = opened.state, opened.tracking
    health = Health(
        disc_loss=config.loss.disc_loss,
        adaptive=config.loss.adaptive_weight != "off",
        max_nonfinite_steps=config.train.max_nonfinite_steps,
    )
    stop = StopSignal(group=processes.hosts)
    stopped_by = unsaved = None
    with stop:
        while state.step < stage.last_step and not stopped_by:
            # Update generator and discriminator.
            with waiting_for_others(f"in step {state.step + 1}"), explained_memory(opened.step, config):
                stop.begin()
                opened.step(opened.batches)
                stopped_by = stop.agreed()
            tracking.bar.update()

            # Report.
            if due(state, config, config.train.log_steps):
                report(opened, health=health)

            # Validate, or draw samples of training images, and measure the panel.
            best_before = state.best
            if due(state, config, config.train.validation_steps):
                validate_stage(opened, run, config=config, processes=processes)
            if due(state, config, config.train.panel_steps):
                log_panel(state, opened.panel, config=config, processes=processes, tracking=tracking)

            # Save.
            if stopped_by or state.best is not best_before or due(state, config, config.train.checkpointing_steps):
                check_ranks_agree(state, processes=processes)
                unsaved = processes.on_main(
                    lambda: save(state, run, opened.plan, tracking=tracking), purpose="to write the checkpoint"
                )
                if unsaved:
                    state.best = best_before
    return end_of_stage(state, run, unsaved=unsaved, stopped_by=stopped_by)


def report(opened: OpenStage, *, health: Health) -> None:
    """Log the figures of the updates since the last report, and say what looks ill in them."""
    state, tracking = opened.state, opened.tracking
    reading = state.meter.read()
    posterior = summary_of(state.posterior)
    tracking.log(reading, learning_rates=state.learning_rates, posterior=posterior, step=state.step)
    with told_once():
        for line in health.lines(reading, posterior=posterior, step=state.step):
            tracking.say(line)


def validate_stage(opened: OpenStage, run: RunFolder, *, config: Config, processes: Processes) -> None:
    """Measure the validation images and keep the best figure; without such images, draw samples of the training's."""
    state, samples = opened.state, run.sample(opened.state.step)
    if opened.validation is None:
        draw_samples(state, opened.training, samples, config=config, accelerator=processes.accelerator)
        return
    summary = validate(state, opened.validation, config=config, processes=processes, samples=samples)
    opened.tracking.validated(validation_figures(summary), step=state.step)
    state.best = best_validation(summary, state.best, config=config, step=state.step)


def end_of_stage(
    state: TrainingState, run: RunFolder, *, unsaved: str | None, stopped_by: signal.Signals | None
) -> TrainSummary:
    """Return how a stage ended.

    Args:
        state: After its last update.
        run: The run's folder.
        unsaved: Why the last update isn't saved; None where it is.
        stopped_by: The signal that ended the stage early.

    Raises:
        NonFiniteError: The stage came to its end, which isn't saved.
    """
    kept = run.checkpoint(state.step) if not unsaved else last_checkpoint(run)
    if unsaved and not stopped_by:
        with told_once():
            raise NonFiniteError(
                f"the run ended after {counted(state.step, 'step')}, which are not saved, since {unsaved}; "
                f"{kept_words(kept)}. A lower <train.learning_rate> or <train.mixed_precision> no may help"
            )
    return TrainSummary(
        step=state.step,
        checkpoint=kept,
        unsaved=unsaved,
        stopped_by=stopped_by.name if stopped_by else None,
    )


def summary_of(posterior: Tensor | None) -> PosteriorSummary | None:
    """Return what an update's latents carry, where it was measured and is finite."""
    return None if posterior is None else summarise_posterior(posterior, least_variance=ACTIVE_VARIANCE)


def due(state: TrainingState, config: Config, every: int | None) -> bool:
    """Return whether what happens every so many steps is due after this one; at the end of a stage it always is."""
    return every is not None and (state.step % every == 0 or state.stage_step == config.train.max_train_steps)


def save(state: TrainingState, run: RunFolder, plan: RunPlan, *, tracking: Tracking) -> str | None:
    """Write a checkpoint of a sound state, then remove those over the limit.

    Returns:
        Why nothing was written or removed, where the state isn't sound.
    """
    unsound = why_unsound(state, plan.stage.config)
    if unsound:
        tracking.say(f"step {state.step}: no checkpoint is saved, since {unsound}; {kept_words(last_checkpoint(run))}")
        return unsound
    tracking.sync()
    before = run.checkpoints()
    checkpoint = save_checkpoint(state, run, plan)
    limit = plan.stage.config.train.checkpoints_total_limit
    remove_old_checkpoints(run, step=state.step, limit=limit, best=state.best)
    upload_checkpoint(run, plan.config, checkpoint, before=before, say=tracking.say)
    return None


def last_checkpoint(run: RunFolder) -> Path | None:
    """Return the newest checkpoint; None where none was saved."""
    return next(reversed(run.checkpoints()), None)
