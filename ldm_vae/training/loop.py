"""A training run, from its config to its last checkpoint."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from ldm_vae.config.paths import resolve_paths
from ldm_vae.config.rules import FieldError
from ldm_vae.config.run import Config
from ldm_vae.losses.rate import PosteriorSummary, summarise_posterior
from ldm_vae.metrics.latents import ACTIVE_VARIANCE
from ldm_vae.reporting.report import write_report
from ldm_vae.training.capacity import explained_memory, fit_to_memory
from ldm_vae.training.checkpoint import RunPlan, begin_stage, load_checkpoint, save_checkpoint
from ldm_vae.training.checkpoint_files import remove_old_checkpoints
from ldm_vae.training.checkpoint_store import upload_checkpoint
from ldm_vae.training.data_names import DataNames
from ldm_vae.training.health import Health, NonFiniteError
from ldm_vae.training.inputs import RunData, open_batches, open_data, training_images, validation_images
from ldm_vae.training.panel import log_panel, panel_images
from ldm_vae.training.processes import (
    Processes,
    check_ranks_agree,
    join_processes,
    told_once,
    waiting_for_others,
)
from ldm_vae.training.resume import begin_run, choose_checkpoint, compare_data
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.signals import StopSignal
from ldm_vae.training.soundness import why_unsound
from ldm_vae.training.stages import Stage, next_stage, opening_lines
from ldm_vae.training.state import TrainingState, build_state
from ldm_vae.training.step import TrainingStep
from ldm_vae.training.summary import TrainSummary, kept_words
from ldm_vae.training.tracking import Tracking
from ldm_vae.training.validation import best_validation, draw_samples, validate, validation_figures


@dataclass(kw_only=True)
class Session:
    """What the stages of a run share while this process trains them."""

    run: RunFolder
    config: Config
    """All settings of the run."""
    processes: Processes
    data: RunData
    names: DataNames | None = None
    """The training images' names, once they are compared with the checkpoint's."""
    tracking: Tracking | None = None
    """Made once the run's folder is."""


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
            # From the disk, as after an interruption, which so leaves no trace.
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
    # Set up networks and images.
    run, processes, config = session.run, session.processes, stage.config
    accelerator = processes.accelerator
    state = build_networks(session, config)
    training = training_images(
        session.data.training, config, state, processes=processes, early_stages=stage.early_stages
    )
    validation = validation_images(session.data.validation, config, state)
    panel = panel_images(session.data.validation, config, state)
    step = TrainingStep(state, loss_config=config.loss, train_config=config.train, accelerator=accelerator)

    # Resume, or begin the stage.
    if session.names is None:
        session.names = processes.on_main(
            lambda: compare_data(run, config, training, checkpoint=checkpoint), purpose="to list the training data"
        )
    plan = RunPlan(config=session.config, stage=stage, data=session.names)
    lines = take_up(state, stage, checkpoint)
    check_ranks_agree(state, processes=processes)
    if session.tracking is None:
        processes.on_main(
            lambda: begin_run(run, plan, training, checkpoint=checkpoint, learning_rates=state.learning_rates),
            purpose="to prepare the run's folder",
        )
        tracking = Tracking(run, session.config, accelerator=accelerator, step=state.step)
        session.tracking = closing.enter_context(contextlib.closing(tracking))
        if checkpoint is not None:
            lines.insert(0, f"Resumed from {checkpoint}")
    tracking = session.tracking
    tracking.opens(config, [*lines, *opening_lines(stage, session.config)])
    batches = open_batches(training, config, state=state, accelerator=accelerator, tracking=tracking)
    health = Health(
        disc_loss=config.loss.disc_loss,
        adaptive=config.loss.adaptive_weight != "off",
        max_nonfinite_steps=config.train.max_nonfinite_steps,
    )
    with waiting_for_others("in the rehearsal"):
        compile_and_rehearse(step, config, accelerator=accelerator, tracking=tracking)
    stop = StopSignal(group=processes.hosts)

    stopped_by = unsaved = None
    with stop:
        while state.step < stage.last_step and not stopped_by:
            # Update generator and discriminator.
            with waiting_for_others(f"in step {state.step + 1}"), explained_memory(step, config):
                stop.begin()
                step(batches)
                stopped_by = stop.agreed()
            tracking.bar.update()

            # Report.
            if due(state, config, config.train.log_steps):
                reading = state.meter.read()
                posterior = summary_of(state.posterior)
                tracking.log(reading, learning_rates=state.learning_rates, posterior=posterior, step=state.step)
                with told_once():
                    for line in health.lines(reading, posterior=posterior, step=state.step):
                        tracking.say(line)

            # Validate.
            samples, best_before = run.sample(state.step), state.best
            if validation is not None and due(state, config, config.train.validation_steps):
                summary = validate(state, validation, config=config, processes=processes, samples=samples)
                tracking.validated(validation_figures(summary), step=state.step)
                state.best = best_validation(summary, state.best, config=config, step=state.step)
            elif due(state, config, config.train.validation_steps):
                draw_samples(state, training, samples, config=config, accelerator=accelerator)
            if due(state, config, config.train.panel_steps):
                log_panel(state, panel, config=config, processes=processes, tracking=tracking)

            # Save.
            if stopped_by or state.best is not best_before or due(state, config, config.train.checkpointing_steps):
                check_ranks_agree(state, processes=processes)
                unsaved = processes.on_main(
                    lambda: save(state, run, plan, tracking=tracking), purpose="to write the checkpoint"
                )
                if unsaved:
                    state.best = best_before
    kept = run.checkpoint(state.step) if not unsaved else last_checkpoint(run)
    if unsaved and not stopped_by:
        with told_once():
            raise NonFiniteError(
                f"the run ended after {state.step} steps, which are not saved, since {unsaved}; {kept_words(kept)}. A "
                f"lower <train.learning_rate> or <train.mixed_precision> no may help"
            )
    return TrainSummary(
        step=state.step,
        checkpoint=kept,
        unsaved=unsaved,
        stopped_by=stopped_by.name if stopped_by else None,
    )


def try_later_stages(session: Session, *, after: Stage) -> None:
    """Build the networks of the stages to come, so that what they lack is told before anything is trained.

    Raises:
        FieldError: A stage can't be built. The message names it.
    """
    for number, config in list(enumerate(session.config.row, 1))[after.number + 1 :]:
        try:
            build_networks(session, config)
        except FieldError as error:
            raise FieldError(f"stage {number}: {error.message}") from None
        session.processes.accelerator.free_memory()


def build_networks(session: Session, config: Config) -> TrainingState:
    """Build a stage's state; a network that is new in it has the same first weights as after an interruption."""
    set_seed(config.seed)
    with waiting_for_others("to set up the networks"):
        return build_state(config, accelerator=session.processes.accelerator)


def take_up(state: TrainingState, stage: Stage, checkpoint: Path | None) -> list[str]:
    """Put into the state what a stage goes on with; return lines about what differs."""
    if checkpoint is None:
        return []
    if stage.begins:
        begin_stage(state, checkpoint)
        return []
    return load_checkpoint(state, checkpoint)


def compile_and_rehearse(step: TrainingStep, config: Config, *, accelerator: Accelerator, tracking: Tracking) -> None:
    """Choose which activations to recompute, compile the networks, and rehearse a step of each shape.

    Raises:
        ValueError: A step doesn't fit into memory.
    """
    train = config.train
    with explained_memory(step, config):
        if train.memory_budget_gib is not None:
            with told_once():
                tracking.say(fit_to_memory(step, config, accelerator=accelerator))
        if train.compiles(accelerator.device.type):
            step.state.compile_networks()
        for shape in (*((side, side) for side in config.data.early_resolutions), *config.data.sizes):
            step.rehearse(resolution=shape)


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
