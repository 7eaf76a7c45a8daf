"""What stands before a stage's first update: networks, images, the checkpoint that it goes on from, a rehearsal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from ldm_vae.config.rules import FieldError
from ldm_vae.config.run import Config
from ldm_vae.images.evaluation import EvaluationSamples
from ldm_vae.images.streaming import StreamingImages
from ldm_vae.images.training import TrainingBatch, TrainingSamples
from ldm_vae.panel.sums import PanelImages
from ldm_vae.training.capacity import explained_memory, fit_to_memory
from ldm_vae.training.checkpoint import RunPlan, begin_stage, load_checkpoint
from ldm_vae.training.data_names import DataNames
from ldm_vae.training.inputs import RunData, open_batches, training_images, validation_images
from ldm_vae.training.panel import panel_images
from ldm_vae.training.processes import Processes, check_ranks_agree, told_once, waiting_for_others
from ldm_vae.training.resume import begin_run, compare_data
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.stages import Stage, opening_lines
from ldm_vae.training.state import TrainingState, build_state
from ldm_vae.training.step import TrainingStep
from ldm_vae.training.tracking import Tracking


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


@dataclass(frozen=True, kw_only=True)
class OpenStage:
    """A stage that is ready for its next update."""

    plan: RunPlan
    state: TrainingState
    step: TrainingStep
    training: TrainingSamples | StreamingImages
    batches: Iterator[TrainingBatch]
    """Micro-batches of `training`, from the next update on."""
    validation: EvaluationSamples | None
    panel: PanelImages | None
    tracking: Tracking


def open_stage(session: Session, stage: Stage, *, checkpoint: Path | None, closing: contextlib.ExitStack) -> OpenStage:
    """Prepare a stage, and with a run's first one its folder; arguments are those of `train_stage`."""
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
    lines = restore_state(state, stage, checkpoint)
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

    # Open the batches, and rehearse.
    batches = open_batches(training, config, state=state, accelerator=accelerator, tracking=tracking)
    with waiting_for_others("in the rehearsal"):
        compile_and_rehearse(step, config, accelerator=accelerator, tracking=tracking)
    return OpenStage(
        plan=plan,
        state=state,
        step=step,
        training=training,
        batches=batches,
        validation=validation,
        panel=panel,
        tracking=tracking,
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


def restore_state(state: TrainingState, stage: Stage, checkpoint: Path | None) -> list[str]:
    """Load what a stage goes on from into the state; return lines about what the checkpoint has otherwise."""
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
