"""The number of threads of training steps: the fastest of a trial, chosen again when the machine changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from segwright.training.monitoring.thread_choice import STEPS_BETWEEN_TRIALS, ThreadChoice, fastest_threads


@pytest.fixture(autouse=True)
def _same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Machine:
    """A machine whose steps take a known time with each number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.time = 0.0

    def run(self, choice: ThreadChoice, steps: int) -> list[int]:
        """Return the number of threads of each step."""
        used = []
        for _ in range(steps):
            choice.on_train_step_start(None)
            used.append(torch.get_num_threads())
            self.time += self.seconds[torch.get_num_threads()]
            choice.on_train_step_end(None)
        return used


def test_the_fastest_number_is_used_after_a_trial_of_all() -> None:
    machine = Machine({4: 1.0, 2: 0.5, 1: 0.8})
    used = machine.run(ThreadChoice((4, 2, 1), now=lambda: machine.time), 20)
    assert used == [4] * 3 + [2] * 3 + [1] * 3 + [2] * 11


def test_more_threads_must_gain_something() -> None:
    machine = Machine({2: 0.95, 1: 1.0})
    assert machine.run(ThreadChoice((2, 1), now=lambda: machine.time), 10)[-1] == 1


def test_a_machine_that_gets_busy_is_noticed() -> None:
    machine = Machine({2: 0.5, 1: 1.0})
    choice = ThreadChoice((2, 1), now=lambda: machine.time)
    assert machine.run(choice, STEPS_BETWEEN_TRIALS)[-1] == 2
    machine.seconds = {2: 5.0, 1: 1.0}
    assert machine.run(choice, STEPS_BETWEEN_TRIALS)[-1] == 1


def test_afterwards_torch_has_its_former_number_of_threads() -> None:
    torch.set_num_threads(2)
    callbacks: list[object] = []
    machine = Machine({2: 1.0, 1: 0.1})

    def train_and_fail() -> None:
        with fastest_threads(callbacks, now=lambda: machine.time):
            assert isinstance(callbacks[0], ThreadChoice)
            assert machine.run(callbacks[0], 10)[-1] == 1
            raise ValueError("a training that fails")

    with pytest.raises(ValueError, match="fails"):
        train_and_fail()
    assert torch.get_num_threads() == 2
