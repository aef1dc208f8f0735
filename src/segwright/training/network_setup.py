"""Build the network of a training, describe it for checkpoints, and check what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.given import PREFIX, GivenObject, method_reference, reference_to
from segwright.core.extensions.trust import CodeTrust
from segwright.core.extensions.user_code import source_location, user_call
from segwright.data.description import DatasetDescription
from segwright.data.labels import Labels
from segwright.data.plan import Configuration, Plan
from segwright.networks.architecture import norm_kwargs
from segwright.networks.build import SHORT_NAMES, UNET_NAMES, ArchitectureSpec, build_from_spec
from segwright.networks.mednext.sizes import NAME as MEDNEXT
from segwright.networks.shapes import output_shapes
from segwright.training.config import TrainConfig
from segwright.training.loading.targets import Scales


def input_channel_names(
    description: DatasetDescription, labels: Labels, configuration: Configuration
) -> tuple[str, ...]:
    """Return the names of the input channels; the second stage of a cascade has one more for each foreground label."""
    previous = labels.foreground_labels if configuration.previous_stage is not None else ()
    return (*description.channel_names.values(), *(f"previous stage {value}" for value in previous))


def build_planned_network(
    configuration: Configuration, num_input_channels: int, num_heads: int, deep_supervision: bool
) -> nn.Module:
    """Build the network of a plan's configuration."""
    architecture = configuration.architecture.model_dump(by_alias=True)
    return build_from_spec(
        None, architecture, num_input_channels, num_heads, configuration.patch_size, deep_supervision
    )


def architecture_spec(config: TrainConfig, configuration: Configuration) -> ArchitectureSpec:
    """Return the spec of the network that settings and plan name.

    Raises:
        ConfigError: the settings contradict each other.
    """
    name = configuration.architecture.network_class_name if config.network is None else config.network
    is_changeable = config.network in (None, *UNET_NAMES, *SHORT_NAMES) and name != MEDNEXT
    if config.norm is not None and not is_changeable:
        raise _norm_error(config, f"network '{name}'")
    norm = {} if config.norm is None else norm_kwargs(config.norm, configuration.dims)
    if config.network_kwargs and isinstance(getattr(config.network, "value", None), nn.Module):
        raise ConfigError(
            f"network_kwargs {config.network_kwargs} have no effect on a network that is already made; give its class "
            "or a function"
        )
    if config.network is not None:
        return ArchitectureSpec(reference=config.network, kwargs={**config.network_kwargs, **norm})
    if config.network_kwargs:
        raise ConfigError("network_kwargs are set without a network; name it, e.g. network='unet'")
    planned = ArchitectureSpec.from_plan(configuration.architecture.model_dump(by_alias=True))
    return ArchitectureSpec(reference=planned.reference, kwargs={**planned.kwargs, **norm})


def require_no_network_settings(config: TrainConfig, trainer_name: str) -> None:
    """Refuse network settings for a trainer class that builds its own network.

    Raises:
        ConfigError: network or norm is set.
    """
    if config.norm is not None:
        raise _norm_error(config, trainer_name)
    if config.network is not None:
        raise ConfigError(
            f"network '{config.network}' is set, but {trainer_name} builds its own in "
            "build_network_architecture; remove one of them"
        )


def trainer_spec(config: TrainConfig, trainer: type, plan: Plan, configuration: str) -> ArchitectureSpec:
    """Return the spec of the network that a trainer class builds: its `rebuild_network`, with the plan as argument.

    Raises:
        ConfigError: network settings are set as well.
    """
    require_no_network_settings(config, trainer.__name__)
    kwargs = {"plans": plan.to_json(), "configuration": configuration}
    return ArchitectureSpec(reference=method_reference(trainer, "rebuild_network"), kwargs=kwargs)


def object_notes(config: TrainConfig, trainer: type, spec: ArchitectureSpec) -> tuple[str, ...]:
    """Return lines about components that were given as Python objects which no file can name.

    Args:
        config: the settings.
        trainer: the trainer class.
        spec: the definition of the network that the checkpoint stores.
    """
    given = {name: reference for name, reference in config.references() if isinstance(reference, GivenObject)}
    owner = reference_to(trainer)
    if isinstance(owner, GivenObject):
        given = {**given, "trainer": owner}
    notes = []
    for name, reference in given.items():
        what = f"{name}: the model folder cannot name the Python object {reference.removeprefix(PREFIX)}"
        notes.append(f"{what}; to resume, pass it again")
        defines_network = any(isinstance(part, GivenObject) for part in (spec.reference, spec.logits_of))
        if name in ("network", "trainer") and defines_network:
            notes[-1] += "; to predict, use segwright.load_model(path, network=...)"
    return tuple(notes)


def build_named_network(
    spec: ArchitectureSpec,
    configuration: Configuration,
    num_input_channels: int,
    num_heads: int,
    deep_supervision: bool,
    *,
    seed: int,
    trust: CodeTrust,
) -> nn.Module:
    """Build a network from its spec, its initial weights drawn with `seed`."""
    return build_from_spec(
        spec,
        configuration.architecture.model_dump(by_alias=True),
        num_input_channels,
        num_heads,
        configuration.patch_size,
        deep_supervision,
        generator=torch.Generator().manual_seed(seed),
        trust=trust,
    )


def build_custom_network(build: Callable[..., nn.Module], *arguments: Any, seed: int, trainer_name: str) -> nn.Module:
    """Call a trainer class's own `build_network_architecture` with torch's random generator seeded, and restore it.

    Raises:
        ModelError: it did not return a network.
        UserCodeError: it failed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with user_call(build, f"build_network_architecture of {trainer_name}"):
            network: object = build(*arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{source_location(build)}: build_network_architecture returned {type(network).__name__}; it must return a "
            "torch.nn.Module"
        )
    return network


def output_scales(network: nn.Module, num_input_channels: int, patch_size: Sequence[int], num_heads: int) -> Scales:
    """Check the shapes of a network's outputs, and return their sizes relative to the patch.

    Raises:
        ModelError: an output is not logits of the labels.
    """
    shapes = output_shapes(network, num_input_channels, patch_size)
    for index, shape in enumerate(shapes):
        if shape[0] != num_heads or (index == 0 and shape[1:] != tuple(patch_size)):
            expected = (num_heads, *(patch_size if index == 0 else shape[1:]))
            raise ModelError(
                f"output {index} of the network is {shape} for a patch of {tuple(patch_size)}, expected logits of "
                f"shape {expected} (heads, patch)"
            )
    return [tuple(size / full for size, full in zip(shape[1:], patch_size, strict=True)) for shape in shapes]


def check_outputs(outputs: Any, target: Any, data: Tensor, num_heads: int) -> None:
    """Check the outputs of a network against the targets.

    Args:
        outputs: of the network.
        target: one tensor, or one for each resolution.
        data: the batch (B, C, *S).
        num_heads: number of output channels that the labels need.

    Raises:
        ModelError: the number of outputs or a shape is wrong.
    """
    levels = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    targets: Sequence[Tensor] = [target] if isinstance(target, Tensor) else target
    if len(levels) < len(targets):
        raise ModelError(
            f"the network returned {len(levels)} outputs, expected {len(targets)}, one for each resolution"
        )
    for index, (level, level_target) in enumerate(zip(levels, targets, strict=False)):
        expected = (len(data), num_heads, *level_target.shape[2:])
        found = tuple(level.shape) if isinstance(level, Tensor) else type(level).__name__
        if found != expected:
            raise ModelError(
                f"output {index} of the network is {found}, expected logits of shape {expected} "
                f"(batch, heads, patch); the patch is {tuple(data.shape[2:])}"
            )


def _norm_error(config: TrainConfig, name: str) -> ConfigError:
    return ConfigError(f"norm = '{config.norm}' is for built-in networks; {name} chooses its own; remove the setting")
