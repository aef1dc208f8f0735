"""Signals while a training heeds them, and while nothing does."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from segwright.cli import launch
from segwright.cli.signals import StopSignal, stop_on_signals
from segwright.core.interrupt import Interrupted
from segwright.data.cases import Case
from segwright.inference.folder.failures import Failures, case_in_errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_first_is_a_request_and_the_second_an_end(number: signal.Signals) -> None:
    ending = KeyboardInterrupt if number == signal.SIGINT else StopSignal
    before = signal.getsignal(number)
    with stop_on_signals() as stop, stop.watched():
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
        with pytest.raises(ending):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_without_a_training_the_first_is_the_end() -> None:
    with pytest.raises(Interrupted, match="stopped by SIGTERM; finished work is kept"), stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_is_not_taken_for_the_failure_of_a_case() -> None:
    case = Case(identifier="first", images=())
    with pytest.raises(Interrupted, match="stopped by SIGUSR1"), stop_on_signals():
        failures = Failures()
        with failures.collect(case), case_in_errors(case):
            os.kill(os.getpid(), signal.SIGUSR1)
        pytest.fail("the next case was begun")


def test_in_another_thread_signals_are_left_alone() -> None:
    reasons: list[str] = []

    def work() -> None:
        with stop_on_signals() as stop:
            reasons.append(stop.reason)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reasons == [""]


class Ended:
    """A process that has ended well."""

    def poll(self) -> int:
        return 0


def test_several_processes_are_waited_for_where_there_is_no_sigusr1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGUSR1")
    assert launch._wait([Ended()]) is None  # type: ignore[list-item]
