"""Where a run starts, what is told of changes, and what the folder is made to hold."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_vae.config.loss import Ramp
from ldm_vae.config.parsing import dump_config
from ldm_vae.config.run import Config
from ldm_vae.images.collection import open_collection
from ldm_vae.images.training import Augmentation, TrainingImages
from ldm_vae.reporting.page import FIRST_BYTES
from ldm_vae.training.checkpoint import RunPlan
from ldm_vae.training.checkpoint_files import CheckpointError
from ldm_vae.training.data_names import digest_names
from ldm_vae.training.loop import train
from ldm_vae.training.resume import begin_run, choose_checkpoint, compare_data
from ldm_vae.training.run_folder import RunFolder
from ldm_vae.training.stages import next_stage
from ldm_vae.training.state import TrainingState
from tests.tiny import tiny_config
from tests.training.checkpoints import CONFIG, names, plan_of, save_at
from tests.training.runs import damage


def resuming(run: Path, name: str | None, *, overwrite: bool = False) -> Config:
    config = copy.deepcopy(CONFIG)
    config.output_dir, config.overwrite = str(run), overwrite
    config.train.resume_from_checkpoint = name
    return config


def pictures_called(folder: Path, called: Sequence[str]) -> TrainingImages:
    """Training images of these names."""
    folder.mkdir(exist_ok=True)
    for name in called:
        Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(folder / name)
    collection = open_collection(str(folder))
    return TrainingImages(
        collection, Augmentation(seed=0, channels=3, resolution=32, latent_channels=4, spatial_factor=2)
    )


@pytest.fixture
def images(tmp_path_factory: pytest.TempPathFactory) -> TrainingImages:
    return pictures_called(tmp_path_factory.mktemp("images"), ["a.png", "b.png"])


def begin(run: Path, config: Config, images: TrainingImages, *, checkpoint: Path | None, **rates: float) -> None:
    plan = dataclasses.replace(plan_of(config), stage=next_stage(config, checkpoint=checkpoint))
    begin_run(RunFolder(run), plan, images, checkpoint=checkpoint, learning_rates=rates)


def test_run_into_a_folder_that_holds_one_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a run; go on with train\.resume_from_checkpoint latest"):
        choose_checkpoint(RunFolder(run), resuming(run, None))
    assert choose_checkpoint(RunFolder(run), resuming(run, None, overwrite=True)) is None
    assert choose_checkpoint(RunFolder(tmp_path / "new"), resuming(run, None)) is None
    assert choose_checkpoint(RunFolder(tmp_path / "new"), resuming(run, "latest")) is None
    assert names(run) == ["1", "2", "3"]  # choosing changes nothing


def test_damaged_checkpoint_by_name_is_one_line_and_changes_nothing(run: Path) -> None:
    damage(run / "checkpoint-000003" / "optimizer.safetensors", how="flip")
    with pytest.raises(CheckpointError, match=r"checkpoint-000003 is damaged: optimizer\.safetensors") as raised:
        choose_checkpoint(RunFolder(run), resuming(run, "checkpoint-000003"))
    assert "\n" not in str(raised.value)
    assert names(run) == ["1", "2", "3"]


def test_overwriting_removes_what_a_run_writes_and_nothing_else(run: Path, images: TrainingImages) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "checkpoint-notes.txt").write_text("mine")
    for name in ("metrics.jsonl", "skipped.jsonl", "data_names.txt.gz"):
        (run / name).write_text("{}\n")
    (run / "report.html").write_bytes(FIRST_BYTES + b"<title>a run</title>")
    (run / "samples").mkdir()
    config = resuming(run, None, overwrite=True)
    begin(run, config, images, checkpoint=None)
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoint-notes.txt", "config.yaml", "data_names.txt.gz", "notes.txt",
    ]  # fmt: skip
    assert (run / "config.yaml").read_text() == dump_config(config)


def test_a_page_that_is_no_report_stays(run: Path, images: TrainingImages) -> None:
    (run / "report.html").write_text("<h1>my thesis</h1>")
    config = resuming(run, None, overwrite=True)
    config.report = True
    with pytest.raises(
        ValueError, match=r"report\.html is no report of ldm-vae and would be replaced by one; move it"
    ):
        choose_checkpoint(RunFolder(run), config)
    config.report = False
    assert choose_checkpoint(RunFolder(run), config) is None
    begin(run, config, images, checkpoint=None)
    assert (run / "report.html").read_text() == "<h1>my thesis</h1>"


def test_resuming_drops_what_came_after_and_torn_lines(run: Path, images: TrainingImages) -> None:
    lines = [{"step": 1, "rec": 0.1}, {"step": 2, "rec": 1 / 3}, {"step": 3, "rec": 0.3}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "re')
    (run / "skipped.jsonl").write_text('{"index": 1, "name": "a", "reason": "r"}\n{"ind')
    (run / ".checkpoint-000007.unfinished").mkdir()
    damage(run / "checkpoint-000003" / "ema.safetensors", how="flip")
    config = resuming(run, "latest")
    chosen = choose_checkpoint(RunFolder(run), config)
    assert chosen == run / "checkpoint-000002"
    begin(run, config, images, checkpoint=chosen)
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == lines[:2]
    assert (run / "skipped.jsonl").read_text().count("\n") == 1
    assert names(run) == ["1", "2"]
    assert sorted(path.name for path in run.iterdir() if "checkpoint" in path.name) == [
        "checkpoint-000001", "checkpoint-000002", "checkpoint-000003.damaged",
    ]  # fmt: skip


# Changes


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_changed_settings_are_told(
    run: Path, state: TrainingState, images: TrainingImages, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resuming(run, "latest")
    config.train.weight_decay = 0.1
    begin(run, config, images, checkpoint=run / "checkpoint-000003", **state.learning_rates)
    assert told(capsys) == ["train.weight_decay is 0.1 now, after 0.0"]


def test_a_weight_that_became_a_ramp_is_told(
    run: Path, state: TrainingState, images: TrainingImages, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resuming(run, "latest")
    config.loss.kl_weight = Ramp(end=1e-3, to_step=9)
    begin(run, config, images, checkpoint=run / "checkpoint-000003", **state.learning_rates)
    lines = told(capsys)
    assert "loss.kl_weight is absent now, after 1e-06" in lines
    assert "loss.kl_weight.end is 0.001 now, after absent" in lines


def test_schedule_that_another_length_changes_is_told(
    run: Path, images: TrainingImages, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resuming(run, "latest")
    config.train.max_train_steps = 12
    begin(run, config, images, checkpoint=run / "checkpoint-000003", lr=9e-4)
    assert told(capsys) == [
        "train.max_train_steps is 12 now, after 6",
        "train.lr_scheduler cosine falls over all of train.max_train_steps, so from now on it falls differently",
        "lr is 0.0009 after update 3 now, where it was 0.00075",
    ]


def early(run: Path, *, steps: int, fractions: Sequence[float] = (0.5,)) -> Config:
    data = {"early_resolutions": [16] * len(fractions), "early_fractions": list(fractions)}
    train = {"max_train_steps": steps, "resume_from_checkpoint": "latest"}
    return tiny_config(output_dir=run, data=data, train=train)


def test_stages_stay_as_they_were_begun(
    tmp_path: Path, state: TrainingState, images: TrainingImages, capsys: pytest.CaptureFixture[str]
) -> None:
    """A longer run doesn't go back to a resolution that it has left; it does what its own fractions say if changed."""
    begun, longer = early(tmp_path, steps=4), early(tmp_path, steps=12)
    checkpoint = save_at(state, tmp_path, 3, plan=plan_of(begun))
    assert begun.early_stages == [(2, 16)]
    assert longer.early_stages == [(6, 16)]  # update 4 would be one of 16 pixels again
    stage = next_stage(longer, checkpoint=checkpoint)
    assert stage.early_stages == [(2, 16)]
    assert next_stage(longer, checkpoint=None).early_stages == [(6, 16)]
    others = early(tmp_path, steps=4, fractions=[0.75])
    assert next_stage(others, checkpoint=checkpoint).early_stages == [(3, 16)]

    plan = RunPlan(config=longer, stage=stage, data=digest_names(["a.png", "b.png"]))
    begin_run(RunFolder(tmp_path), plan, images, checkpoint=checkpoint, learning_rates={})
    assert told(capsys) == [
        "train.max_train_steps is 12 now, after 4",
        "the early stages stay as the run began them: 16 pixels before update 2",
    ]


def starting_at(run: Path, start: float, *, steps: int) -> Config:
    train = {"max_train_steps": steps, "resume_from_checkpoint": "latest"}
    return tiny_config(output_dir=run, loss={"disc_start": start}, train=train)


def test_discriminators_start_stays_as_it_was_begun(
    tmp_path: Path, state: TrainingState, images: TrainingImages, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it is a part of a run that is lengthened; another part, or number, counts."""
    begun, longer = starting_at(tmp_path, 0.5, steps=4), starting_at(tmp_path, 0.5, steps=12)
    checkpoint = save_at(state, tmp_path, 3, plan=plan_of(begun))
    assert next_stage(begun, checkpoint=None).disc_start == 2
    assert next_stage(longer, checkpoint=None).disc_start == 6
    stage = next_stage(longer, checkpoint=checkpoint)
    assert stage.disc_start == 2
    assert next_stage(starting_at(tmp_path, 0.25, steps=12), checkpoint=checkpoint).disc_start == 3
    assert next_stage(starting_at(tmp_path, 7, steps=12), checkpoint=checkpoint).disc_start == 7

    plan = RunPlan(config=longer, stage=stage, data=digest_names(["a.png", "b.png"]))
    begin_run(RunFolder(tmp_path), plan, images, checkpoint=checkpoint, learning_rates={})
    assert told(capsys) == [
        "train.max_train_steps is 12 now, after 4",
        "the discriminator's start stays as the run began it: after update 2",
    ]


# Other data


def compare(run: Path, images: TrainingImages, *, changed: str = "refuse") -> object:
    config = resuming(run, "latest")
    config.data.train, config.data.changed = "DATA", changed
    return compare_data(RunFolder(run), config, images, checkpoint=run / "checkpoint-000003")


def test_other_data_is_refused_saying_what_changed(
    run: Path, images: TrainingImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(run, images) == digest_names(["a.png", "b.png"])
    begin(run, resuming(run, "latest"), images, checkpoint=run / "checkpoint-000003")
    other = pictures_called(tmp_path / "other", ["b.png", "c.png", "d.png"])
    with pytest.raises(ValueError, match=r"data\.changed accept") as raised:
        compare(run, other)
    change = "2 added ('c.png', 'd.png') and 1 gone ('a.png'), 3 now after 2"
    assert f"data.train: DATA is not what checkpoint-000003 was trained on: {change}. " in str(raised.value)
    told(capsys)

    accepted = compare(run, other, changed="accept")
    assert accepted == digest_names(["b.png", "c.png", "d.png"])
    assert told(capsys) == [f"data.train is not what it was at checkpoint-000003: {change}"]


def test_other_data_of_the_same_number_is_refused(run: Path, images: TrainingImages, tmp_path: Path) -> None:
    begin(run, resuming(run, "latest"), images, checkpoint=run / "checkpoint-000003")
    with pytest.raises(ValueError, match=r"1 added \('c\.png'\) and 1 gone \('a\.png'\), 2 now after 2"):
        compare(run, pictures_called(tmp_path / "other", ["b.png", "c.png"]))


def test_other_data_is_refused_where_the_names_were_not_kept(run: Path, tmp_path: Path) -> None:
    other = pictures_called(tmp_path / "other", ["b.png", "c.png", "d.png"])
    for kept in (None, b"", b"\x1f\x8bnonsense"):
        if kept is not None:
            (run / "data_names.txt.gz").write_bytes(kept)
        with pytest.raises(ValueError, match=r"3 images, after 2, with other names or in another order"):
            compare(run, other)


def test_resume_onto_a_grown_folder_is_refused_until_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    pictures_called(folder, ["a.png", "b.png", "c.png", "d.png"])

    def config(steps: int, changed: str = "refuse") -> Config:
        train = {"max_train_steps": steps, "resume_from_checkpoint": "latest"}
        return tiny_config(output_dir=tmp_path / "run", data={"train": str(folder), "changed": changed}, train=train)

    train(config(3))
    train(config(4))
    pictures_called(folder, ["aa.png"])
    with pytest.raises(ValueError, match=r"1 added \('aa\.png'\), 5 now after 4"):
        train(config(5))
    assert train(config(5, "accept")).step == 5
    assert train(config(6)).step == 6  # the checkpoint is of the new data now
