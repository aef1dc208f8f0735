"""The choice between plain and compiled steps, with a compiler and a clock that the tests control."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segwright.core.errors import DatasetError
from segwright.training.config import TrainConfig
from segwright.training.distributed.context import SINGLE, DistributedContext
from segwright.training.execution import choice
from segwright.training.execution.choice import (
    COMPILED,
    GRAPHS,
    PLAIN,
    PLAIN_STEPS,
    TRIAL_STEPS,
    Execution,
    make_execution,
)
from segwright.training.execution.step import LossFunction, StepParts, StepSettings, compute_gradients, plain_loss
from tests.unit.training.tiny_task import make, settings

NUM_STEPS = PLAIN_STEPS + 2 * (1 + TRIAL_STEPS) + 3
"""Steps after which everything is decided, and some more."""

SETTINGS = StepSettings(device=torch.device("cpu"), precision="fp32", clip_norm=12.0)


class Clock:
    """A clock that advances when it is told to."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


CompileFunction = Callable[..., LossFunction]


def make_compiler(
    clock: Clock,
    *,
    seconds: tuple[float, float] = (1.0, 1.0),
    change: Callable[[Tensor, StepParts], Tensor] | None = None,
    raises_after: int | None = None,
    graphs_raise: bool = False,
) -> CompileFunction:
    """Return a compiler whose functions take `seconds` (compiled, with graphs), and can be wrong or fail."""

    def compile_function(parts: StepParts, settings: StepSettings, *, graphs: bool) -> LossFunction:
        function, calls = plain_loss(parts, settings), 0

        def compiled(data: Tensor, target: Any) -> Tensor:
            nonlocal calls
            calls += 1
            if (raises_after is not None and calls > raises_after) or (graphs and graphs_raise):
                raise RuntimeError("no kernel\nfor this")
            clock.seconds += seconds[graphs]
            loss = function(data, target)
            return loss if change is None else change(loss, parts)

        return compiled

    return compile_function


class Network(nn.Module):
    """A convolution with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, data: Tensor) -> Any:
        return self.last(self.dropout(F.relu(self.norm(self.first(data)))))


def make_parts() -> StepParts:
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, fused=True)
    loss: Any = lambda output, target: F.cross_entropy(output, target[:, 0])  # noqa: E731
    return StepParts(network=network, loss=loss, optimizer=optimizer)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    data = torch.randn(3, 1, 8, 8, generator=generator)
    return data, (data > 0).long()


def run(execution: Execution, parts: StepParts, *, steps: int = NUM_STEPS, clock: Clock | None = None) -> list[float]:
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        if clock is not None:
            clock.seconds += 10.0  # time between two steps counts for none
        losses.append(float(execution.run(parts, *batch(step))))
    return losses


class Case:
    """An execution of the tiny network, its log and its losses."""

    losses: list[float]

    def __init__(self, *, plain_seconds: float = 2.0, ways: tuple[choice.Way, ...] = (COMPILED, GRAPHS), **kwargs: Any):
        self.clock = Clock()
        self.lines: list[str] = []
        self.parts = make_parts()
        self.compile = make_compiler(self.clock, **kwargs)
        self.execution = Execution(
            SETTINGS, ways=ways, log=self.lines.append, compile_function=self.compile, now=self.clock
        )
        self.plain_seconds = plain_seconds

    def run(self, steps: int = NUM_STEPS) -> list[float]:
        def pass_time(*_: object) -> None:
            if self.execution.way is PLAIN:
                self.clock.seconds += self.plain_seconds

        handle = self.parts.optimizer.register_step_post_hook(pass_time)
        losses = run(self.execution, self.parts, steps=steps, clock=self.clock)
        handle.remove()
        return losses

    def weights(self) -> dict[str, Tensor]:
        return self.parts.network.state_dict()


@pytest.fixture(scope="module")
def plain() -> Case:
    case = Case(ways=())
    case.losses = case.run()
    return case


def test_no_way_computes_plain_steps_and_says_nothing(plain: Case) -> None:
    assert plain.execution.way is PLAIN
    assert plain.execution.is_decided
    assert plain.lines == []


FAILURES: dict[str, tuple[dict[str, Any], choice.Way, list[str]]] = {
    "nothing": (
        {"seconds": (1.0, 0.5)},
        GRAPHS,
        [
            "compiled: on, 1000.0 ms per step instead of 2000.0 ms",
            "CUDA graphs: on, 500.0 ms per step instead of 1000.0 ms",
        ],
    ),
    "the compiler raises": (
        {"raises_after": 0},
        PLAIN,
        ["compiled: off, RuntimeError: no kernel for this; the training goes on plain"],
    ),
    "a later step raises": (
        {"raises_after": 5},
        PLAIN,
        ["compiled: off, RuntimeError: no kernel for this; the training goes on plain"],
    ),
    "a step after the trials raises": (
        {"raises_after": 1 + TRIAL_STEPS + 2, "graphs_raise": True},
        PLAIN,
        [
            "compiled: on, 1000.0 ms per step instead of 2000.0 ms",
            "CUDA graphs: off, RuntimeError: no kernel for this; the training goes on compiled",
            "compiled: off, RuntimeError: no kernel for this; the training goes on plain",
        ],
    ),
    "the capture raises": (
        {"graphs_raise": True},
        COMPILED,
        [
            "compiled: on, 1000.0 ms per step instead of 2000.0 ms",
            "CUDA graphs: off, RuntimeError: no kernel for this; the training goes on compiled",
        ],
    ),
    "slower steps": (
        {"seconds": (2.5, 1.0)},
        PLAIN,
        ["compiled: off, slower, 2500.0 ms per step instead of 2000.0 ms; the training goes on plain"],
    ),
    "slower graphs": (
        {"seconds": (1.0, 1.5)},
        COMPILED,
        [
            "compiled: on, 1000.0 ms per step instead of 2000.0 ms",
            "CUDA graphs: off, slower, 1500.0 ms per step instead of 1000.0 ms; the training goes on compiled",
        ],
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_is_one_line_and_trains_to_the_same_weights(name: str, plain: Case) -> None:
    kwargs, way, lines = FAILURES[name]
    case = Case(**kwargs)
    losses = case.run()
    assert case.lines == lines
    assert case.execution.way is way
    assert case.execution.is_decided
    assert losses == plain.losses
    torch.testing.assert_close(case.weights(), plain.weights(), rtol=0, atol=0)


class AddGradient(torch.autograd.Function):
    """The loss, with an error in the gradient of a weight."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, weight: Tensor, error: float) -> Tensor:
        ctx.error = torch.full_like(weight, error)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, ctx.error * gradient, None


def gradient_error(name: str, error: float) -> Callable[[Tensor, StepParts], Tensor]:
    return lambda loss, parts: AddGradient.apply(loss, parts.network.get_parameter(name), error)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda loss, _: loss * 1.01, r"the loss is \S+ instead of \S+; the"),
        (lambda loss, _: loss * torch.nan, r"the loss is nan instead of \S+; the"),
        (lambda loss, _: loss + (loss - loss.detach()), r"the gradient of first.weight differs by \S+, at most \S+ is"),
        (gradient_error("last.bias", 1e-2), r"the gradient of last.bias differs by"),
        (gradient_error("norm.weight", torch.nan), r"the gradient of norm.weight differs by nan"),
    ],
    ids=["loss", "NaN", "gradient", "one gradient", "NaN in one gradient"],
)
def test_wrong_result_is_found_in_the_first_batch(change: Any, expected: str, plain: Case) -> None:
    case = Case(change=change)
    steps = PLAIN_STEPS + 2
    assert case.run(steps) == plain.losses[:steps]
    assert len(case.lines) == 1
    assert re.match(f"compiled: off, wrong result, {expected}", case.lines[0])


def test_gradient_that_only_one_way_has_is_a_wrong_result() -> None:
    case = Case(change=lambda loss, parts: loss + 0 * parts.network.unused.sum())
    case.parts.network.unused = nn.Parameter(torch.ones(2))
    case.run(PLAIN_STEPS + 1)
    assert "only one of them has a gradient of unused" in case.lines[0]


def test_rounding_errors_are_none() -> None:
    case = Case(change=lambda loss, _: loss * (1 + 1e-5), ways=(COMPILED,))
    case.run(PLAIN_STEPS + 1)
    assert case.execution.way is COMPILED


def test_graphs_are_not_tried_where_the_device_is_busy(monkeypatch: pytest.MonkeyPatch, plain: Case) -> None:
    case = Case(plain_seconds=4.0)

    def finish(device: torch.device) -> None:
        case.clock.seconds += 1.0  # of the device, after a second of the host

    monkeypatch.setattr(choice, "synchronize", finish)
    assert case.run() == plain.losses
    assert case.execution.way is COMPILED
    assert case.lines == [
        "compiled: on, 2000.0 ms per step instead of 5000.0 ms",
        "CUDA graphs: off, starting the kernels takes only 1000.0 ms of 2000.0 ms per step; "
        "the training goes on compiled",
    ]


def test_batch_that_is_not_finite_is_not_compared() -> None:
    case = Case(ways=(COMPILED,))
    case.run(PLAIN_STEPS)  # the next step compares
    data, target = batch(0)
    data[0, 0, 0, 0] = torch.inf
    before = {name: parameter.detach().clone() for name, parameter in case.parts.network.named_parameters()}
    assert case.execution.run(case.parts, data, target).isnan()
    torch.testing.assert_close(dict(case.parts.network.named_parameters()), before, rtol=0, atol=0)
    assert case.execution.way is PLAIN
    case.parts.network.norm.reset_running_stats()
    case.execution.run(case.parts, *batch(1))
    assert case.execution.way is COMPILED


def test_hook_of_the_network_that_comes_later_is_called() -> None:
    case = Case(ways=(COMPILED,))
    case.run(PLAIN_STEPS + 1)
    compiled = case.execution._in_use[-1][1]
    calls = []
    handle = case.parts.network.get_submodule("last").register_forward_hook(lambda *_: calls.append("hook"))
    case.execution._in_use[-1] = (COMPILED, lambda *_: pytest.fail("a compiled function does not call it"))
    case.run(2)
    assert calls == ["hook"] * 2
    handle.remove()
    case.execution._in_use[-1] = (COMPILED, compiled)
    before = case.clock.seconds
    case.run(1)
    assert case.clock.seconds == before + 10.0 + 1.0


def test_another_loss_is_compiled_again() -> None:
    case = Case(ways=(COMPILED,))
    case.run(PLAIN_STEPS + 1)
    other: Any = lambda output, target: 2 * F.cross_entropy(output, target[:, 0])  # noqa: E731
    case.parts = StepParts(network=case.parts.network, loss=other, optimizer=case.parts.optimizer)
    case.run(1)
    assert case.execution.way is PLAIN
    case.run(PLAIN_STEPS)
    assert case.execution.way is COMPILED


def test_error_of_the_data_is_no_failure_of_the_compiler() -> None:
    def refuse(*_: object) -> Tensor:
        raise DatasetError("case a is damaged")

    case = Case(change=refuse)
    with pytest.raises(DatasetError, match="case a is damaged"):
        case.run()
    assert case.lines == []


def test_gradients_of_untrained_parameters_do_not_add_up() -> None:
    parts = make_parts()
    untrained = parts.network.get_parameter("last.weight")
    trained = [parameter for parameter in parts.network.parameters() if parameter is not untrained]
    parts = StepParts(network=parts.network, loss=parts.loss, optimizer=torch.optim.SGD(trained, lr=0.0))
    norms = []
    for _ in range(2):
        torch.manual_seed(0)
        compute_gradients(plain_loss(parts, SETTINGS), parts, *batch(0))
        norms.append(untrained.grad.norm())
    assert norms[0] == norms[1]


class TwoProcesses(DistributedContext):
    world_size = 2


@pytest.mark.parametrize(
    ("values", "distributed", "is_tried"),
    [
        ({}, SINGLE, False),
        ({"compile": "off"}, SINGLE, False),
        ({"compile": "on"}, SINGLE, True),
        ({"compile": "on"}, TwoProcesses(), False),
    ],
)
def test_steps_on_a_cpu_are_compiled_on_request(
    values: dict[str, Any], distributed: DistributedContext, is_tried: bool
) -> None:
    lines: list[str] = []
    execution = make_execution(TrainConfig(**values), torch.device("cpu"), distributed, log=lines.append)
    assert execution.is_decided is not is_tried
    is_refused = values.get("compile") == "on" and not is_tried
    assert lines == is_refused * ["compiled: off, 2 processes share the training; it goes on plain"]


@pytest.mark.parametrize(
    ("capability", "has_triton", "values", "ways"),
    [
        ((9, 0), True, {}, (COMPILED, GRAPHS)),
        ((9, 0), True, {"compile": "off"}, ()),
        ((9, 0), True, {"deterministic": True}, ()),
        ((9, 0), True, {"num_epochs": 9}, ()),
        ((9, 0), True, {"num_epochs": 10}, (COMPILED, GRAPHS)),
        ((9, 0), True, {"budget_s": 1799}, ()),
        ((9, 0), True, {"budget_s": 1800}, (COMPILED, GRAPHS)),
        ((9, 0), True, {"num_epochs": 9, "compile": "on"}, (COMPILED, GRAPHS)),
        ((9, 0), False, {}, ()),
        ((9, 0), False, {"compile": "on"}, (COMPILED, GRAPHS)),
        ((6, 1), True, {}, ()),
    ],
)
def test_steps_on_a_gpu_are_compiled_where_triton_can(
    capability: tuple[int, int],
    has_triton: bool,
    values: dict[str, Any],
    ways: tuple[choice.Way, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr("segwright.core.device.find_spec", lambda name: object() if has_triton else None)
    execution = make_execution(TrainConfig(**values), torch.device("cuda"), SINGLE, log=print)
    assert execution._ways == ways


def test_training_whose_compiler_fails_is_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", fail)
    weights = []
    for setting in ("off", "on"):
        config = settings(num_epochs=2, num_iterations_per_epoch=PLAIN_STEPS // 2 + 2, compile=setting)
        trainer = make(tmp_path / setting, configuration="2d", config=config)
        trainer.run_training()
        weights.append(trainer.network.state_dict())
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    log = (trainer.output_folder / "training.log").read_text()
    assert log.count("compiled: off, RuntimeError: no compiler found; the training goes on plain\n") == 1
