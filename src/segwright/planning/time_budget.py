"""Plan for a time budget: a network, patch and spacing with which this machine makes enough training steps.

nnU-Net's plans fill a GPU and are trained for a day. Such a plan is kept if the budget allows `ENOUGH_STEPS` training
steps. Otherwise (`docs/how-to/time-budget.md`; measurements in `benchmarks/LOG.md`, "Plans for a time budget"):

1. Thick slices are segmented in 2D, since a step of a slice is many times cheaper.
2. The spacing becomes coarser until a patch covers `COVERED` of the median image, but only as far as the labels keep
   `LEAST_KEPT` of their Dice.
3. Width, patch and batch size are the largest of `SIZES` for which the budget allows `WANTED_STEPS` steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from segwright.data.plan import NETWORK_PATH, Configuration, Plan, architecture_block
from segwright.planning.label_detail import coarsest_factor
from segwright.planning.presets import ANISOTROPY, MAX_FEATURES, Network
from segwright.planning.topology import Topology, derive_topology

ENOUGH_STEPS = 10_000
"""Steps that the budget must allow to keep the full plan. Chosen by judgement, not yet measured."""

WANTED_STEPS = 2_500
"""Steps that the budget must allow to choose a larger size. Chosen by judgement, not yet measured."""

RESIZABLE = tuple(NETWORK_PATH + network.value for network in (Network.PLAIN, Network.RESIDUAL))
"""Networks of which other sizes are known."""

LEAST_KEPT = 0.99
"""Share of the labels' Dice that a coarser spacing must keep."""

COVERED = 0.75
"""Share of the median image that a patch of a coarser spacing covers. Covering all of it rounds a patch up to the next
shape that the network can halve, often by a quarter, for borders that seldom show a structure."""

PATCH_SHARES = tuple(percent / 100 for percent in range(100, 55, -5))
"""Shares of a size's voxels for which a patch is tried."""

MIN_BUDGET_S = 60.0
"""Shorter budgets only try whether everything works; timing steps would take a large part of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Width, patch and batch size of a network for a time budget.

    Attributes:
        features: channels of the first stage; doubled with each stage up to `max_features`.
        max_features: the most channels of a stage.
        patch_voxels: voxels of a patch, by number of axes.
        batch_size: patches of a step, by number of axes.
    """

    features: int
    max_features: int
    patch_voxels: Mapping[int, int]
    batch_size: Mapping[int, int]


def _size(features: int, max_features: int, edge_2d: int, edge_3d: int, batch_2d: int = 8, batch_3d: int = 2) -> Size:
    return Size(
        features=features,
        max_features=max_features,
        patch_voxels=MappingProxyType({2: edge_2d**2, 3: edge_3d**3}),
        batch_size=MappingProxyType({2: batch_2d, 3: batch_3d}),
    )


SIZES = (_size(16, 128, 128, 48), _size(16, 128, 160, 64), _size(32, 256, 160, 64), _size(32, 320, 224, 80))
"""From the cheapest to the most expensive. The first is the measured one, the others are chosen by judgement."""

TIMED_SHARE = 0.25
"""A size is timed if the time of the one before predicts at least this share of the wanted steps for it; a GPU takes
less time for more work than predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A configuration that could be trained, and the seconds that a step of it takes on this machine.

    Attributes:
        configuration: the configuration.
        step_s: seconds of a training step, timed or, where `is_timed` is False, predicted.
        is_timed: whether it was timed.
    """

    configuration: Configuration
    step_s: float
    is_timed: bool

    def steps(self, budget_s: float) -> int:
        """Return the number of training steps that the budget allows."""
        return int(budget_s / self.step_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The sizes that were considered for a time budget, and the chosen one.

    Attributes:
        candidates: from the cheapest to the full plan's configuration, which is the last one.
        index: of the chosen one.
        allowed: largest factor on the spacing that the labels allow.
    """

    candidates: tuple[Candidate, ...]
    index: int
    allowed: float

    @property
    def chosen(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.index]

    @property
    def larger(self) -> Candidate | None:
        """The next larger candidate; None if the full plan's configuration was chosen."""
        return None if self.is_full else self.candidates[self.index + 1]

    @property
    def is_full(self) -> bool:
        """Whether the full plan's configuration was chosen."""
        return self.index == len(self.candidates) - 1


def choose(
    full: Configuration,
    budget_s: float,
    kept: Mapping[float, float],
    *,
    data_identifier: str,
    step_seconds: Callable[[Configuration], float],
    batch_size: int | None = None,
) -> Choice:
    """Choose the largest size for which the budget allows enough steps.

    Args:
        full: configuration of the plan without a budget.
        budget_s: training time of a fold in seconds.
        kept: share of the labels' Dice that coarser spacings keep (`label_detail.kept_dice`).
        data_identifier: name of the preprocessed data if the spacing changes.
        step_seconds: times a training step of a configuration.
        batch_size: instead of that of the sizes.
    """
    allowed = coarsest_factor(kept, LEAST_KEPT)
    sizes = [resized(full, size, spacing_factor(full, size, allowed), data_identifier, batch_size) for size in SIZES]
    configurations = _distinct(sizes, full)
    costs = [multiply_adds(each) for each in configurations]
    first = configurations[0]
    found = [Candidate(configuration=first, step_s=_rounded(step_seconds(first)), is_timed=True)]
    chosen = 0
    for index, configuration in enumerate(configurations[1:], start=1):
        wanted = ENOUGH_STEPS if configuration is full else WANTED_STEPS
        predicted = found[-1].step_s * costs[index] / costs[index - 1]
        is_timed = chosen == index - 1 and budget_s / predicted >= TIMED_SHARE * wanted
        step_s = _rounded(step_seconds(configuration)) if is_timed else predicted
        if step_s < found[-1].step_s:  # what disturbed the timing of the cheaper one has ended
            found[-1] = replace(found[-1], step_s=step_s)
        found.append(Candidate(configuration=configuration, step_s=step_s, is_timed=is_timed))
        if is_timed and budget_s / step_s >= wanted:
            chosen = index
    return Choice(candidates=tuple(found), index=chosen, allowed=allowed)


def next_budget_s(choice: Choice) -> float | None:
    """Return the smallest budget, in seconds, for which a larger size is chosen; None if the full plan was chosen."""
    if choice.larger is None:
        return None
    wanted = ENOUGH_STEPS if choice.larger is choice.candidates[-1] else WANTED_STEPS
    return choice.larger.step_s * wanted


def can_be_resized(configuration: Configuration) -> bool:
    """Return whether a configuration is a U-Net of a plan, outside a cascade, of which other sizes are known."""
    is_stage = configuration.previous_stage is not None or configuration.next_stage is not None
    return configuration.architecture.network_class_name in RESIZABLE and not is_stage


def quick_configuration(plan: Plan) -> str:
    """Return the configuration for a short training: 2d for 2D images and for thick slices, else 3d_fullres.

    Slices are thick if their spacing is `ANISOTROPY` times that in plane, or more.
    """
    if "2d" not in plan.configurations or "3d_fullres" not in plan.configurations:
        return plan.default_configuration
    spacing = plan.configuration("3d_fullres").spacing
    return "2d" if spacing[0] >= ANISOTROPY * max(spacing[1:]) else "3d_fullres"


def spacing_factor(full: Configuration, size: Size, allowed: float) -> float:
    """Return the factor on the spacing with which a patch covers `COVERED` of the median image; 1 up to `allowed`."""
    voxels = COVERED * math.prod(full.median_image_size_in_voxels)
    factor: float = (voxels / size.patch_voxels[full.dims]) ** (1 / full.dims)
    return max(1.0, min(factor, allowed))


def resized(
    full: Configuration, size: Size, factor: float, data_identifier: str, batch_size: int | None = None
) -> Configuration:
    """Return a configuration of a plan in another size and spacing.

    Args:
        full: the configuration.
        size: width, patch and batch size.
        factor: on the spacing.
        data_identifier: name of the preprocessed data if the spacing changes.
        batch_size: instead of that of the size.
    """
    spacing = tuple(value * factor for value in full.spacing)
    shape = tuple(max(1, round(extent / factor)) for extent in full.median_image_size_in_voxels)
    topology = _topology_within(spacing, shape, size.patch_voxels[full.dims])
    changed = {
        "data_identifier": full.data_identifier if factor == 1 else data_identifier,
        "batch_size": batch_size or size.batch_size[full.dims],
        "patch_size": list(topology.patch_size),
        "median_image_size_in_voxels": list(shape),
        "spacing": list(spacing),
        "architecture": _architecture(full, size, topology),
    }
    document = full.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return Configuration.from_json({**document, **changed}, where="time budget")


def patch_of(spacing: Sequence[float], shape: Sequence[float], voxels: int) -> list[int]:
    """Return a patch of about `voxels` voxels and equal edges in mm, but no axis longer than the median image.

    What an axis that is shorter leaves goes to the others.
    """
    patch: dict[int, int] = {}
    while len(patch) < len(shape):
        free = [axis for axis in range(len(shape)) if axis not in patch]
        left = voxels / math.prod(patch.values())
        edge = (left * math.prod(spacing[axis] for axis in free)) ** (1 / len(free))
        short = [axis for axis in free if shape[axis] <= edge / spacing[axis]]
        for axis in short or free:
            patch[axis] = max(1, round(min(shape[axis], edge / spacing[axis])))
    return [patch[axis] for axis in range(len(shape))]


def _topology_within(spacing: Sequence[float], shape: Sequence[float], voxels: int) -> Topology:
    """Return the topology of the largest patch of at most `voxels` voxels that the network can halve, if there is one.

    Patches are rounded up to such a shape, some by half of their voxels, so smaller ones are tried too.
    """
    found = [derive_topology(spacing, patch_of(spacing, shape, round(share * voxels))) for share in PATCH_SHARES]
    fitting = [each for each in found if math.prod(each.patch_size) <= voxels]
    if fitting:
        return max(fitting, key=lambda each: math.prod(each.patch_size))
    return min(found, key=lambda each: math.prod(each.patch_size))


def multiply_adds(configuration: Configuration) -> float:
    """Return the multiplications of the convolutions of a training step, without factors that all networks share."""
    arguments = configuration.architecture.arch_kwargs
    features = arguments["features_per_stage"]
    blocks = arguments.get("n_conv_per_stage") or arguments["n_blocks_per_stage"]
    sizes: list[float] = list(configuration.patch_size)
    total = 0.0
    for stage, (kernel, stride) in enumerate(zip(arguments["kernel_sizes"], configuration.strides, strict=True)):
        sizes = [size / factor for size, factor in zip(sizes, stride, strict=True)]
        decoder = 0 if stage == len(features) - 1 else arguments["n_conv_per_stage_decoder"][-1 - stage] + 1
        convolutions = blocks[stage] + decoder
        total += convolutions * math.prod(sizes) * math.prod(kernel) * features[stage] ** 2
    return total * configuration.batch_size


def _distinct(sizes: Sequence[Configuration], full: Configuration) -> list[Configuration]:
    """Return the sizes that are cheaper than the full configuration, each once, and the full one."""
    cheaper = [each for each in sizes if multiply_adds(each) < multiply_adds(full)]
    return [each for index, each in enumerate(cheaper) if each not in cheaper[:index]] + [full]


def _architecture(full: Configuration, size: Size, topology: Topology) -> dict[str, Any]:
    arguments, stages = full.architecture.arch_kwargs, topology.num_stages
    blocks = arguments.get("n_conv_per_stage") or arguments["n_blocks_per_stage"]
    decoder = arguments["n_conv_per_stage_decoder"]
    most = min(size.max_features, MAX_FEATURES[full.dims])
    return architecture_block(
        full.architecture.network_class_name.rpartition(".")[2],
        dims=full.dims,
        features=tuple(min(most, size.features * 2**stage) for stage in range(stages)),
        kernel_sizes=topology.kernel_sizes,
        strides=topology.strides,
        encoder_blocks=_first(blocks, stages),
        decoder_convs=_first(decoder, stages - 1),
    )


def _first(counts: Sequence[int], number: int) -> tuple[int, ...]:
    """Return the first `number` counts; the last one is repeated where there are fewer."""
    return tuple(counts[min(index, len(counts) - 1)] for index in range(number))


def _rounded(seconds: float) -> float:
    """Round to half a power of two, so that machines of one kind plan alike."""
    return float(2 ** (round(2 * math.log2(seconds)) / 2))
