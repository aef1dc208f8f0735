"""The part of a trainer that builds its network, says in checkpoints which one it is, and checks what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.registry import reference_of
from segwright.core.extensions.user_code import source_location, user_call
from segwright.data.plan import Configuration, Plan
from segwright.networks.architecture import norm_kwargs
from segwright.networks.build import SHORT_NAMES, TOPOLOGY_NAMES, ArchitectureSpec, build_from_spec, output_shapes
from segwright.training.assignment import Assignment
from segwright.training.loading.targets import Scales


class NetworkBuilding(Assignment):
    """Three rungs: the plan's network, one named in the settings, one that a subclass builds."""

    @staticmethod
    def build_network_architecture(
        plans: Plan,
        configuration: Configuration,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the plan's network; a subclass may return any that gives logits (B, heads, *S) or a list of them."""
        return build_from_spec(
            None,
            configuration.architecture.model_dump(by_alias=True),
            num_input_channels,
            num_output_channels,
            configuration.patch_size,
            enable_deep_supervision,
        )

    @classmethod
    def rebuild_network(
        cls,
        num_input_channels: int,
        num_output_channels: int,
        *,
        patch_size: tuple[int, ...],
        deep_supervision: bool,
        plans: Mapping[str, Any],
        configuration: str,
    ) -> nn.Module:
        """Return the class's network from what a checkpoint stores; a network reference points here."""
        plan = Plan.from_json(plans)
        return cls.build_network_architecture(
            plan, plan.configuration(configuration), num_input_channels, num_output_channels, deep_supervision
        )

    def network_spec(self) -> ArchitectureSpec:
        """Return what a checkpoint stores to build the network again.

        A subclass's is found through its `rebuild_network`, with the plan as argument.

        Raises:
            ConfigError: settings contradict each other, or the subclass cannot be imported.
        """
        config = self.config
        changeable = (None, *TOPOLOGY_NAMES, *SHORT_NAMES)
        if config.norm is not None and (self._builds_its_own or config.network not in changeable):
            name = self.trainer_name if self._builds_its_own else f"network '{config.network}'"
            raise ConfigError(f"norm = '{config.norm}' is for built-in networks; {name} chooses its own, drop the norm")
        norm = {} if config.norm is None else norm_kwargs(config.norm, self.configuration.dims)
        if self._builds_its_own:
            if config.network is not None:
                raise ConfigError(
                    f"network '{config.network}' is set, but {self.trainer_name} builds its own in "
                    "build_network_architecture; drop one of them"
                )
            kwargs = {"plans": self.plans.to_json(), "configuration": self.configuration_name}
            return ArchitectureSpec(reference=f"{reference_of(type(self))}.rebuild_network", kwargs=kwargs)
        if config.network is not None:
            return ArchitectureSpec(reference=config.network, kwargs={**config.network_kwargs, **norm})
        if config.network_kwargs:
            raise ConfigError("network_kwargs are set without a network; name it, e.g. network='unet'")
        planned = ArchitectureSpec.from_plan(self.configuration.architecture.model_dump(by_alias=True))
        return ArchitectureSpec(reference=planned.reference, kwargs={**planned.kwargs, **norm})

    def _build_network(self, *, more: int = 0) -> nn.Module:
        """Return the network, its initial weights drawn with the run's seed; with `more` input channels and heads."""
        spec, configuration = self.network_spec(), self.configuration
        inputs, heads, seed = self.num_input_channels + more, self.labels.num_heads + more, self.config.seed
        if not self._builds_its_own:
            return build_from_spec(
                spec,
                configuration.architecture.model_dump(by_alias=True),
                inputs,
                heads,
                configuration.patch_size,
                self.enable_deep_supervision,
                generator=torch.Generator().manual_seed(seed),
                trust=self.trust,
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            build = type(self).build_network_architecture
            with user_call(build, f"build_network_architecture of {self.trainer_name}"):
                network = build(self.plans, configuration, inputs, heads, self.enable_deep_supervision)
        if not isinstance(network, nn.Module):
            raise ModelError(
                f"{source_location(build)}: build_network_architecture returned {type(network).__name__}; it must "
                "return a torch.nn.Module"
            )
        return network

    @property
    def _builds_its_own(self) -> bool:
        return type(self).build_network_architecture is not NetworkBuilding.build_network_architecture


def checked_scales(network: nn.Module, num_input_channels: int, patch_size: Sequence[int], num_heads: int) -> Scales:
    """Return the sizes of a network's outputs relative to the patch, and see that they are logits of the labels.

    Raises:
        ModelError: what was expected, what came.
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
    """Compare a network's first output with what the loss needs.

    Args:
        outputs: what the network gave.
        target: one tensor, or one for each resolution.
        data: the batch (B, C, *S).
        num_heads: output channels the labels need.

    Raises:
        ModelError: what was expected, what came.
    """
    levels = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    targets: Sequence[Tensor] = [target] if isinstance(target, Tensor) else target
    if len(levels) < len(targets):
        raise ModelError(f"the network gave {len(levels)} outputs, expected {len(targets)}, one for each resolution")
    for index, (level, wanted) in enumerate(zip(levels, targets, strict=False)):
        expected = (len(data), num_heads, *wanted.shape[2:])
        found = tuple(level.shape) if isinstance(level, Tensor) else type(level).__name__
        if found != expected:
            raise ModelError(
                f"output {index} of the network is {found}, expected logits of shape {expected} "
                f"(batch, heads, patch); the patch is {tuple(data.shape[2:])}"
            )
