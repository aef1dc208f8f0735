"""The clock of a training: epochs, budget, and what is left of them."""

from __future__ import annotations

import pytest

from segwright.training.clock import BUDGET_EPOCHS, Clock, Timer
from segwright.training.optim.schedule import poly


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
        with clock.timing("validation"):
            time.now += validation_s
        with clock.timing("save"):
            time.now += save_s
        epochs.append(steps)
    return epochs


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
