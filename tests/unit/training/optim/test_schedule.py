"""Schedules, the clock of a budget, and settings that depend on plan, device and budget."""

from __future__ import annotations

import pytest
import torch

from segwright.core.errors import ConfigError
from segwright.data.plan import Plan
from segwright.training.config import TrainConfig, changed
from segwright.training.defaults import num_validation_steps, planned_epochs, resolve_config, save_interval_s
from segwright.training.optim.schedule import BUDGET_EPOCHS, SCHEDULES, Clock, Timer, build_schedule, cosine, poly
from tests.unit.training.tiny_task import plans, settings

CPU = torch.device("cpu")
CONFIGURATION = Plan.from_json(plans()).configuration("3d")


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(clock: Clock, time: FakeTime, *, step_s: float, validation_s: float, save_s: float) -> list[int]:
    """Train with steps of a length until the clock says stop; return the steps of each epoch."""
    clock.start()
    epochs: list[int] = []
    while not clock.is_over(len(epochs)):
        clock.begin_epoch()
        steps = 0
        while not clock.epoch_is_over and steps < 10_000:
            time.now += step_s
            steps += 1
            clock.end_step()
        with clock.costing("validation"):
            time.now += validation_s
        with clock.costing("save"):
            time.now += save_s
        epochs.append(steps)
    return epochs


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.01), (1, 0.009991), (50, 0.0095489), (500, 0.0053589), (999, 1.9953e-5)]
)
def test_poly_gives_the_reference_s_rates(epoch: int, rate: float) -> None:
    assert 0.01 * poly(epoch / 1000) == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("step_s", [0.05, 0.4, 3.0, 11.0])
def test_budget_is_kept_and_used(step_s: float) -> None:
    time = FakeTime()
    clock = Clock(num_epochs=None, budget_s=600.0, now=time)
    run(clock, time, step_s=step_s, validation_s=step_s, save_s=0.5)
    assert 600 - 3 * step_s - 5 <= time.now - 100 <= 600
    assert poly(clock.progress(0)) < 0.05


def test_budget_has_about_the_stated_number_of_epochs() -> None:
    time = FakeTime()
    epochs = run(Clock(num_epochs=None, budget_s=600.0, now=time), time, step_s=0.4, validation_s=1.0, save_s=0.3)
    assert 20 <= len(epochs) <= BUDGET_EPOCHS
    assert min(epochs) > 20


def test_epoch_has_a_step_even_when_the_budget_is_too_short_for_one() -> None:
    time = FakeTime()
    assert run(Clock(num_epochs=None, budget_s=0.1, now=time), time, step_s=5, validation_s=1, save_s=1) == [1]


def test_resumed_clock_has_what_is_left() -> None:
    time = FakeTime()
    clock = Clock(num_epochs=None, budget_s=600.0, now=time)
    clock.before_s = 500.0
    run(clock, time, step_s=1.0, validation_s=1.0, save_s=0.5)
    assert 85 <= time.now - 100 <= 100


def test_epochs_end_a_training_without_a_budget_and_time_does_not() -> None:
    time = FakeTime()
    clock = Clock(num_epochs=3, budget_s=None, now=time)
    clock.start()
    clock.begin_epoch()
    clock.end_step()
    time.now += 1e9
    assert not clock.epoch_is_over
    assert not clock.is_over(2)
    assert clock.is_over(3)
    assert clock.progress(1) == pytest.approx(1 / 3)


def test_whichever_is_further_decides_where_epochs_and_budget_are_set() -> None:
    time = FakeTime()
    clock = Clock(num_epochs=10, budget_s=1000.0, now=time)
    clock.start()
    time.now += 500
    assert clock.progress(1) == pytest.approx(0.5, abs=0.01)
    assert clock.progress(9) == pytest.approx(0.9)


def test_stopped_clock_does_not_advance() -> None:
    time = FakeTime()
    clock = Clock(num_epochs=1, budget_s=None, now=time)
    clock.start()
    time.now += 5
    clock.stop()
    time.now += 5
    assert clock.elapsed_s == 5


def test_timer_is_due_after_its_interval_and_again_after_a_reset() -> None:
    time = FakeTime()
    timer = Timer(10.0, now=time)
    time.now += 10
    assert timer.is_due
    timer.reset()
    assert not timer.is_due


def test_plan_decides_settings_that_were_not_set() -> None:
    regime = resolve_config(settings(), CONFIGURATION, CPU)
    assert (regime.config.batch_size, regime.config.batch_dice, regime.notes) == (3, False, ())


def test_budget_on_a_cpu_takes_small_batches_and_says_so() -> None:
    regime = resolve_config(settings(budget_s=60), CONFIGURATION, CPU)
    assert regime.config.batch_size == 2
    assert "instead of the plan's 3" in regime.notes[0]


def test_batch_size_that_was_set_is_kept() -> None:
    regime = resolve_config(settings(budget_s=60, batch_size=3), CONFIGURATION, CPU)
    assert regime.config.batch_size == 3
    assert not any("batch" in note for note in regime.notes)


@pytest.mark.parametrize(
    ("values", "momentum"),
    [({}, 0.95), ({"budget_s": 7200}, 0.99), ({"momentum": 0.99}, 0.99), ({"budget_s": None}, 0.99)],
)
def test_momentum_is_lower_under_a_short_budget_on_a_cpu_unless_it_was_set(
    values: dict[str, float], momentum: float
) -> None:
    regime = resolve_config(settings(**{"budget_s": 60, **values}), CONFIGURATION, CPU)
    assert regime.config.momentum == momentum
    assert any("momentum" in note for note in regime.notes) == (momentum == 0.95)


def test_budget_on_an_accelerator_keeps_the_plan_s_batch_size() -> None:
    assert resolve_config(settings(budget_s=60), CONFIGURATION, torch.device("mps")).config.batch_size == 3


def test_validation_after_a_budgeted_epoch_is_short() -> None:
    budgeted = TrainConfig(budget_s=60)
    assert [num_validation_steps(budgeted, steps) for steps in (1, 60, 250, 9999)] == [1, 6, 25, 50]
    assert num_validation_steps(TrainConfig(), 1) == 50


def test_number_of_epochs_counts_under_a_budget_only_if_it_was_set() -> None:
    assert planned_epochs(TrainConfig(budget_s=60)) is None
    assert planned_epochs(TrainConfig(budget_s=60, num_epochs=7)) == 7
    assert planned_epochs(TrainConfig()) == 1000


def test_budgeted_run_is_saved_more_often() -> None:
    assert save_interval_s(TrainConfig()) == 600
    assert save_interval_s(TrainConfig(budget_s=600)) == 60


def test_settings_remember_what_was_set() -> None:
    config = changed(TrainConfig(seed=3), num_epochs=5)
    assert config.model_fields_set == {"seed", "num_epochs"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_epoch": 5}, "unknown training setting 'num_epoch'; did you mean 'num_epochs'?"),
        ({"num_epochs": 0}, "num_epochs: Input should be greater than or equal to 1"),
        ({"precision": "int8"}, "precision: Input should be 'auto'"),
    ],
)
def test_wrong_setting_is_refused_with_the_remedy(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_mapping(values)
    assert words in str(caught.value)


def rates(num_epochs: int, **values: object) -> list[float]:
    schedule = build_schedule(TrainConfig.from_mapping({"num_epochs": num_epochs, **values}), num_epochs)
    return [0.01 * schedule(epoch / num_epochs) for epoch in range(num_epochs)]


def test_warmup_then_poly_gives_nnunet_s_rates() -> None:
    found = rates(1000, schedule="warmup+poly")
    expected = [0.01 / 50 * (1 + epoch) for epoch in range(50)]
    expected += [0.01 * (1 - (epoch - 50) / 950) ** 0.9 for epoch in range(50, 1000)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_cosine_gives_torch_s_rates() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(40, schedule="cosine") == pytest.approx(expected, rel=1e-6)


def test_warmup_has_the_length_that_was_set_and_cosine_the_rest() -> None:
    found = rates(10, schedule="warmup+cosine", warmup_epochs=4)
    assert found[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert found[4:] == pytest.approx([0.01 * cosine(step / 6) for step in range(6)])


@pytest.mark.parametrize("num_epochs", [1, 2, 3])
def test_short_training_warms_up_for_less_than_all_of_it(num_epochs: int) -> None:
    assert max(rates(num_epochs, schedule="warmup+poly")) == pytest.approx(0.01)


def test_warmup_follows_the_time_of_a_budget() -> None:
    config = TrainConfig(budget_s=100, schedule="warmup+poly", warmup_share=0.1)
    schedule = build_schedule(config, None)
    assert [schedule(0.0), schedule(0.05)] == pytest.approx([0.02, 0.51])
    assert schedule(0.0999999) == pytest.approx(1.0, abs=1e-4)
    assert [schedule(0.1), schedule(0.55), schedule(1.0)] == pytest.approx([1.0, poly(0.5), 0.0])


def halved(progress: float) -> float:
    """A user's schedule."""
    return 0.5


def negative(progress: float) -> float:
    """A schedule that ends below 0."""
    return 0.5 - progress


def test_schedule_of_one_s_own_works_by_reference_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rates(3, schedule=f"{__name__}:halved") == [0.005] * 3
    assert rates(4, schedule=f"warmup+{__name__}:halved", warmup_epochs=2) == pytest.approx([0.005, 0.01, 0.005, 0.005])
    monkeypatch.setattr(SCHEDULES, "_values", dict(SCHEDULES._values))
    SCHEDULES.register("halved", halved)
    assert rates(3, schedule="halved") == [0.005] * 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schedule": "polly"}, "unknown schedule 'polly'; did you mean 'poly'"),
        ({"schedule": "warmup+cosin"}, "did you mean 'cosine'"),
        ({"schedule": "warmup+warmup+poly"}, "name a function fn"),
        ({"schedule": f"{__name__}:CPU"}, "name a function fn"),
        ({"schedule": f"{__name__}:negative"}, "gives -0.5 at progress 1.0, expected a finite factor >= 0"),
        ({"warmup_epochs": 5}, r"no effect with schedule 'poly'; choose 'warmup\+poly'"),
        ({"schedule": "warmup+poly", "warmup_epochs": 20}, "must be below num_epochs, 20"),
        ({"schedule": "warmup+poly", "warmup_epochs": 2, "budget_s": 60}, "set warmup_share"),
    ],
)
def test_wrong_schedule_is_refused_with_the_remedy(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_schedule(TrainConfig.from_mapping(values), 20)


def test_momentum_of_a_short_budget_is_unchanged_if_the_optimizer_has_none() -> None:
    assert not any(
        "momentum" in note for note in resolve_config(settings(budget_s=60, optimizer="adam"), CONFIGURATION, CPU).notes
    )
