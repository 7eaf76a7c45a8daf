"""What a run says of its figures."""

from __future__ import annotations

import pytest
import torch

from ldm_vae.training.health import Health, NonFiniteError
from ldm_vae.training.meter import ADVERSARIAL_FIGURES, Meter

CHECKED = ("rec", "perceptual", "kl", "g", "d", "gradient")
FIGURES = ("rec", "perceptual", "kl", "loss", *ADVERSARIAL_FIGURES)


def make_meter(names: tuple[str, ...] = FIGURES) -> Meter:
    return Meter(names, checked=[name for name in CHECKED if name in (*names, "gradient")], device=torch.device("cpu"))


def add(meter: Meter, *, broken: str | None = None, adversarial: bool = True, **figures: float) -> None:
    values = dict.fromkeys(meter.names, 0.0) | ({"d": 0.5} if "d" in meter.names else {}) | figures
    measured = {
        name: torch.tensor(value) for name, value in values.items() if adversarial or name not in ADVERSARIAL_FIGURES
    }
    meter.update(measured, finite=torch.tensor([name != broken for name in meter.checked]))


def lines(health: Health, *, step: int = 10, adversarial: bool = True, **figures: float) -> list[str]:
    meter = make_meter()
    add(meter, adversarial=adversarial, **figures)
    return health.lines(meter.read(), step=step)


def make_health(disc_loss: str = "hinge", *, adaptive: bool = True) -> Health:
    return Health(disc_loss=disc_loss, adaptive=adaptive, max_nonfinite_steps=3)


@pytest.mark.parametrize(
    ("disc_loss", "d", "lam_clamped", "said"),
    [
        ("hinge", 0.05, 0.0, "D is winning"),
        ("hinge", 0.5, 0.0, "D and the generator are in balance"),
        ("hinge", 0.98, 0.0, "D is losing"),
        ("vanilla", 0.05, 0.0, "D is winning"),
        ("vanilla", 0.5, 0.0, "D and the generator are in balance"),
        ("vanilla", 0.69, 0.0, "D is losing"),
        ("hinge", 0.5, 1.0, "lam is at its clamp"),
    ],
)
def test_state_of_the_gan_in_words(disc_loss: str, d: float, lam_clamped: float, said: str) -> None:
    (line,) = lines(make_health(disc_loss), d=d, lam_clamped=lam_clamped, lam=0.3)
    assert line.startswith(f"step 10: GAN: {said}")
    assert f"D's loss {d:.2g}" in line
    assert "lam 0.3" in line


def test_a_fixed_weight_has_no_clamp() -> None:
    (line,) = lines(make_health(adaptive=False), d=0.5, lam_clamped=1.0)
    assert "balance" in line


def test_state_is_told_when_it_changes() -> None:
    health = make_health()
    assert len(lines(health, d=0.97)) == 1
    assert lines(health, d=0.98) == []
    assert len(lines(health, d=0.5)) == 1
    assert lines(health, d=0.6) == []
    assert lines(health, d=0.5, adversarial=False) == []


def test_skipped_updates_are_told_by_term() -> None:
    meter = make_meter()
    for broken in ("gradient", None, "perceptual", "gradient"):
        add(meter, broken=broken)
    said, _ = make_health().lines(meter.read(), step=4)
    assert said == "step 4: 3 updates were not finite and skipped: perceptual in 1, gradient in 2"


@pytest.mark.parametrize("term", CHECKED)
def test_row_of_skipped_updates_stops_the_run_and_names_the_term(term: str) -> None:
    """A row goes on over reports."""
    meter, health = make_meter(), make_health()
    add(meter, broken=term)
    add(meter)
    for _ in range(2):
        add(meter, broken=term)
        health.lines(meter.read(), step=3)
    add(meter, broken=term)
    with pytest.raises(NonFiniteError, match=rf"^3 updates in a row, up to step 5, were not finite \({term}\)"):
        health.lines(meter.read(), step=5)


def test_skipped_updates_leave_no_trace_in_the_means() -> None:
    meter = make_meter()
    add(meter, rec=1.0)
    add(meter, rec=float("nan"), broken="rec")
    add(meter, rec=2.0)
    reading = meter.read()
    assert reading.means["rec"] == 1.5
    assert (reading.num_finite, reading.num_skipped, reading.row) == (2, 1, 0)


def test_figures_of_d_are_means_over_the_steps_with_d() -> None:
    """The window that holds disc_start: two steps without D, two with it."""
    meter = make_meter()
    for adversarial, rec in ((False, 1.0), (False, 2.0), (True, 3.0), (True, 4.0)):
        add(meter, adversarial=adversarial, rec=rec, d=0.8, lam=0.2)
    means = meter.read().means
    assert means["rec"] == 2.5
    assert means["d"] == pytest.approx(0.8)
    assert means["lam"] == pytest.approx(0.2)
    add(meter, adversarial=False)
    assert meter.read().means.keys().isdisjoint(ADVERSARIAL_FIGURES)


def test_a_checkpoint_with_other_figures_is_taken_up_by_name() -> None:
    """A figure that came starts anew, one that went is dropped, and both are told in one line."""
    before, after = make_meter(("rec", "old", "kl")), make_meter(("new", "kl", "rec"))
    add(before, rec=1.0, old=5.0, kl=3.0)
    add(before, broken="kl")
    said = after.load(before.state())
    assert said == "Figures are not those of the checkpoint: new came; old went"
    add(after, rec=3.0, new=7.0, kl=5.0)
    reading = after.read()
    assert reading.means == {"rec": 2.0, "kl": 4.0, "new": 7.0}
    assert (reading.num_finite, reading.num_skipped, reading.nonfinite) == (2, 1, {"kl": 1})
    assert make_meter().load(make_meter().state()) is None
