"""Learning rate schedules."""

from __future__ import annotations

import pytest
import torch

from segwright.core.errors import ConfigError
from segwright.training.config import TrainConfig
from segwright.training.optim.schedule import SCHEDULES, build_schedule, cosine, poly

NOT_CALLABLE = 1


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.01), (1, 0.009991), (50, 0.0095489), (500, 0.0053589), (999, 1.9953e-5)]
)
def test_poly_gives_the_reference_s_rates(epoch: int, rate: float) -> None:
    assert 0.01 * poly(epoch / 1000) == pytest.approx(rate, rel=1e-4)


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
        ({"schedule": f"{__name__}:NOT_CALLABLE"}, "name a function fn"),
        ({"schedule": f"{__name__}:negative"}, "gives -0.5 at progress 1.0, expected a finite factor >= 0"),
        ({"warmup_epochs": 5}, r"no effect with schedule 'poly'; choose 'warmup\+poly'"),
        ({"schedule": "warmup+poly", "warmup_epochs": 20}, "must be below num_epochs, 20"),
        ({"schedule": "warmup+poly", "warmup_epochs": 2, "budget_s": 60}, "set warmup_share"),
    ],
)
def test_wrong_schedule_is_refused_with_the_remedy(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_schedule(TrainConfig.from_mapping(values), 20)
