"""Construct networks: from a plan's architecture block, a registered name, or a user's `module:attr`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from segwright.core.device import CUDA, compute_dtype, memory_format
from segwright.core.errors import ConfigError, ModelError, SegwrightError
from segwright.core.extensions.given import GivenObject, reference_to
from segwright.core.extensions.registry import Registry, is_reference, reference_of
from segwright.core.extensions.trust import REBUILD, TRUST_NONE, CodeTrust
from segwright.core.extensions.user_code import describe_error, package_of, source_location, user_call
from segwright.core.resources import resource_error
from segwright.networks import optional
from segwright.networks.architecture import (
    CLASS_PREFIX,
    NETWORK_CLASSES,
    PLAIN,
    RESENC_L_KWARGS,
    RESIDUAL_ENCODER,
    is_known_network,
    kwargs_for_patch,
    parse_architecture,
    plain_kwargs,
    residual_kwargs,
)
from segwright.networks.blocks import BasicBlockD, BottleneckD
from segwright.networks.checkpoint import require_fitting
from segwright.networks.mednext.arguments import parse_arguments, resolve_arguments
from segwright.networks.mednext.network import MedNeXt, reset_parameters
from segwright.networks.mednext.sizes import NAME as MEDNEXT
from segwright.networks.norm import forbid_fused_norms, fuse_norms, has_fused_norms
from segwright.networks.references import build_by_class_path, import_network
from segwright.networks.shapes import output_shapes
from segwright.networks.unet import UNet, fits_patch

INIT_SEED: Final = 12345  # where the caller passes no generator, so that construction is repeatable
MAX_ARGUMENT: Final = 4096  # largest number in the kwargs of another package's network; Primus has 1056
MAX_NUM_ARGUMENTS: Final = 1000  # values in those kwargs, including nested ones
MAX_CHANNELS: Final = 2**16  # of an image, or heads
MAX_WEIGHTS: Final = 2**30  # 4 GiB; nnU-Net's largest presets have 0.2 * 10**9
KAIMING_SLOPE: Final = 0.01  # nnU-Net behaviour 7.6
SHORT_NAMES: Final = {"ResEncL": (RESIDUAL_ENCODER, RESENC_L_KWARGS)}  # self-supervised plans, nnU-Net behaviour 7.7


class NetworkBuilder(Protocol):
    """A function that builds a network, behind a registered name or `module:attr`."""

    def __call__(
        self,
        num_input_channels: int,
        num_output_channels: int,
        *,
        patch_size: tuple[int, ...],
        deep_supervision: bool,
        **kwargs: Any,
    ) -> nn.Module:
        """Build a network that returns logits (B, C, *S), or a list of them, highest resolution first."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """A network definition that plans and checkpoints can store.

    Attributes:
        reference: a registered name ("unet", "residual-unet"), "module:attr", or nnU-Net's class path.
        kwargs: its keyword arguments, JSON values.
        logits_of: reference of the function that finds the logits in its output; None: the output is logits.
    """

    reference: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    logits_of: str | None = None

    @classmethod
    def from_plan(cls, architecture: Mapping[str, Any]) -> ArchitectureSpec:
        """Return the spec of a plan's architecture block (`network_class_name`, `arch_kwargs`)."""
        if not isinstance(architecture.get("network_class_name"), str):
            raise ConfigError("the plan's architecture has no network_class_name; plan the dataset again or add it")
        if ":" in architecture["network_class_name"]:
            raise ConfigError(
                f"the plan's network_class_name '{architecture['network_class_name']}' is refused: a plan names "
                "networks of nnU-Net; name others with --network"
            )
        return cls(reference=architecture["network_class_name"], kwargs=dict(architecture.get("arch_kwargs") or {}))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ArchitectureSpec:
        """Undo `to_json`."""
        logits_of = document.get("logits_of")
        return cls(
            reference=str(document["reference"]),
            kwargs=dict(document.get("kwargs") or {}),
            logits_of=None if logits_of is None else str(logits_of),
        )

    def to_json(self) -> dict[str, Any]:
        """Return `{"reference": ..., "kwargs": ...}`, with `logits_of` if there is one."""
        logits_of = {} if self.logits_of is None else {"logits_of": self.logits_of}
        return {"reference": self.reference, "kwargs": dict(self.kwargs), **logits_of}


def build_network(
    architecture: Mapping[str, Any] | ArchitectureSpec,
    num_input_channels: int,
    num_output_channels: int,
    *,
    deep_supervision: bool,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Build and initialise one of nnU-Net's U-Nets from a plan's architecture block.

    Args:
        architecture: the block (`network_class_name`, `arch_kwargs`) or its spec.
        num_input_channels: image channels.
        num_output_channels: heads, i.e. labels with background, or regions.
        deep_supervision: return a list of logits, highest resolution first.
        generator: random generator of the initial weights; a fixed seed if None. torch's global one is never used.

    Raises:
        ConfigError: an unknown network class or argument.
    """
    spec = architecture if isinstance(architecture, ArchitectureSpec) else ArchitectureSpec.from_plan(architecture)
    network = build_on_meta(spec, num_input_channels, num_output_channels, deep_supervision=deep_supervision)
    _allocate(network, spec.reference)
    initialize(network, generator)
    return network


def build_on_meta(
    spec: ArchitectureSpec, num_input_channels: int, num_output_channels: int, *, deep_supervision: bool = False
) -> nn.Module:
    """Build one of nnU-Net's U-Nets on the meta device: names and shapes of its tensors, without their memory.

    Raises:
        ConfigError: an unknown network class or argument, or impossible arguments.
    """
    reference, kwargs = spec.reference, dict(spec.kwargs)
    if reference in SHORT_NAMES:
        reference, defaults = SHORT_NAMES[reference]
        kwargs = {**defaults, **kwargs}
    topology, options = parse_architecture(reference, kwargs)
    for what, number in (("image channels", num_input_channels), ("heads", num_output_channels)):
        if not 1 <= number <= MAX_CHANNELS:
            raise ConfigError(f"a network cannot have {number} {what}; expected 1 to {MAX_CHANNELS}, see dataset.json")
    try:
        with torch.device("meta"):  # torch's own initial weights would cost time and draw from the global generator
            return UNet(num_input_channels, num_output_channels, topology, options, deep_supervision=deep_supervision)
    except SegwrightError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"network '{reference}' cannot be built: {reason}; see arch_kwargs in the plan") from error


def require_weights(
    spec: ArchitectureSpec,
    configuration_architecture: Mapping[str, Any],
    num_input_channels: int,
    num_output_channels: int,
    patch_size: Sequence[int],
    weights: Mapping[str, Tensor],
    *,
    source: str,
) -> None:
    """Check that weights (possibly on the meta device) fit a U-Net, before memory is allocated for it.

    Networks other than nnU-Net's U-Nets are not checked, since they would have to be built.

    Raises:
        ConfigError: no such network can be built.
        ModelError: tensors are missing, unexpected or of another shape, or a patch cannot pass through the network.
    """
    if spec.reference in UNET_NAMES or spec.reference in SHORT_NAMES or is_known_network(spec.reference):
        resolved = nnunet_spec(spec, configuration_architecture, patch_size)
        network = build_on_meta(resolved, num_input_channels, num_output_channels)
        require_fitting(network, weights, source=source)
        topology, _ = parse_architecture(resolved.reference, resolved.kwargs)
        if not fits_patch(topology, patch_size):
            output_shapes(network.eval(), num_input_channels, patch_size)


def build_from_spec(
    spec: ArchitectureSpec | None,
    configuration_architecture: Mapping[str, Any],
    num_input_channels: int,
    num_output_channels: int,
    patch_size: Sequence[int],
    deep_supervision: bool,
    *,
    generator: torch.Generator | None = None,
    trust: CodeTrust = TRUST_NONE,
    source: str = "the settings",
) -> nn.Module:
    """Build the network of `spec`, or the plan's if it is None.

    A built-in name ("unet", "residual-unet", "mednext") takes the plan's topology, updated with the spec's kwargs. A
    `module:attr` is called with the spec's kwargs only, and initialises itself from torch's seeded generator. It and
    class paths other than nnU-Net's U-Nets are only imported if `trust` allows it. `source` is the file or setting of
    the spec, for error messages.

    Raises:
        ConfigError: the reference is unknown, cannot be imported, or does not take the arguments.
        ModelError: it may not be imported, or did not return an `nn.Module`.
        UserCodeError: a user's builder failed.
    """
    if spec is None:
        spec = ArchitectureSpec.from_plan(configuration_architecture)
    if trust.network is not None:
        spec = _given_network(spec, trust.network, source)
    reference, kwargs = spec.reference, dict(spec.kwargs)
    builtin = reference in TOPOLOGY_NAMES
    if not builtin and not is_reference(reference) and reference not in NETWORKS.names():
        require_known_name(reference)
        if trust.allows(reference) and not is_known_network(reference) and reference not in SHORT_NAMES:
            return build_by_class_path(
                *(reference, kwargs, num_input_channels, num_output_channels),
                deep_supervision=deep_supervision,
                trust=trust,
            )
        if not is_known_network(reference) and reference not in SHORT_NAMES:
            module, _, name = reference.rpartition(".")
            raise ConfigError(
                f"unknown network '{reference}'; one of your own is written '{module}:{name}', built-in ones are "
                f"{', '.join(NETWORKS.names())}; for a class that a plan names, add --trust-code"
            )
        return build_network(
            spec, num_input_channels, num_output_channels, deep_supervision=deep_supervision, generator=generator
        )
    if builtin:
        kwargs = {**dict(configuration_architecture.get("arch_kwargs") or {}), **kwargs}
    registered = _registered_builder(reference)
    if registered is not None and reference not in UNET_NAMES:
        _require_bounded(reference, kwargs)
    builder: NetworkBuilder = registered or import_network(reference, trust, source=source)
    with (
        torch.random.fork_rng(devices=[]),
        _explain_errors(builder, reference, kwargs, is_registered=registered is not None),
    ):
        torch.manual_seed(INIT_SEED if generator is None else generator.initial_seed())
        network = builder(
            num_input_channels,
            num_output_channels,
            patch_size=tuple(patch_size),
            deep_supervision=deep_supervision,
            **kwargs,
        )
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{source_location(builder)}: network '{reference}' returned {type(network).__name__}; it must return a "
            "torch.nn.Module"
        )
    if reference in UNET_NAMES and generator is not None:
        initialize(network, generator)
    return network


def require_known_name(reference: str) -> None:
    """Check a network given by one word; class paths and `module:attr` are checked when they are imported.

    Raises:
        ConfigError: it is unknown; all names are listed.
    """
    if not {*".:"} & {*reference} and reference not in {*SHORT_NAMES, *NETWORK_CLASSES}:
        NETWORKS.get(reference)


def _given_network(spec: ArchitectureSpec, given: Any, source: str) -> ArchitectureSpec:
    """Return the spec of a network that the user gave in place of the one that a file names.

    Raises:
        ConfigError: the file names a built-in network, or what was given is none.
    """
    build = getattr(given, REBUILD.removeprefix("."), None)  # of a trainer class
    if not is_reference(spec.reference):
        if build is not None:
            return spec  # the class has no network of its own
        raise ConfigError(f"{source}: the network is the built-in '{spec.reference}'; leave out network=")
    if isinstance(given, str):
        raise ConfigError(f"network={given!r}: expected the function or class itself; for a name, trust_code={given!r}")
    is_trainers = spec.reference.endswith(REBUILD)
    name = reference_to(given)
    if build is not None and not is_trainers:
        raise ConfigError(
            f"{source}: the network is '{spec.reference}', not that of a trainer class; give it as network= instead of "
            f"'{name}'"
        )
    kwargs = {} if isinstance(given, nn.Module) or (is_trainers and build is None) else spec.kwargs
    return ArchitectureSpec(reference=GivenObject(name, build or given), kwargs=kwargs)


def nnunet_spec(
    spec: ArchitectureSpec, configuration_architecture: Mapping[str, Any], patch_size: Sequence[int]
) -> ArchitectureSpec:
    """Convert a definition to nnU-Net's class path with all arguments.

    Raises:
        ConfigError: nnU-Net has no such network.
    """
    reference, kwargs = spec.reference, dict(spec.kwargs)
    if reference in SHORT_NAMES:
        reference, defaults = SHORT_NAMES[reference]
        kwargs = {**defaults, **kwargs}
    if reference in UNET_NAMES:
        kwargs = {**dict(configuration_architecture.get("arch_kwargs") or {}), **kwargs}
        if reference == "unet":
            kwargs = plain_kwargs(_with_topology(patch_size, kwargs, "n_conv_per_stage"))
            reference = CLASS_PREFIX + PLAIN
        else:
            kwargs = residual_kwargs(_with_topology(patch_size, kwargs, "n_blocks_per_stage"))
            reference = CLASS_PREFIX + RESIDUAL_ENCODER
    if reference in NETWORKS.names():
        raise ConfigError(f"nnU-Net has no network '{reference}', so only segwright can use the model")
    parse_architecture(reference, kwargs)
    return ArchitectureSpec(reference=reference, kwargs=kwargs)


def build_unet(
    num_input_channels: int,
    num_output_channels: int,
    *,
    patch_size: tuple[int, ...],
    deep_supervision: bool,
    **kwargs: Any,
) -> nn.Module:
    """Build a plain U-Net with the topology of plan kwargs if given, else one derived from the patch."""
    arguments = plain_kwargs(_with_topology(patch_size, kwargs, "n_conv_per_stage"))
    spec = ArchitectureSpec(reference=CLASS_PREFIX + PLAIN, kwargs=arguments)
    return build_network(spec, num_input_channels, num_output_channels, deep_supervision=deep_supervision)


def build_residual_unet(
    num_input_channels: int,
    num_output_channels: int,
    *,
    patch_size: tuple[int, ...],
    deep_supervision: bool,
    **kwargs: Any,
) -> nn.Module:
    """Build a U-Net with a residual encoder, with the topology of plan kwargs if given, else derived from the patch.

    A plain plan's convolution counts are replaced by the ResEnc presets': 1, 3, 4, 6, 6, ... blocks, 1 in the decoder.
    """
    arguments = residual_kwargs(_with_topology(patch_size, kwargs, "n_blocks_per_stage"))
    spec = ArchitectureSpec(reference=CLASS_PREFIX + RESIDUAL_ENCODER, kwargs=arguments)
    return build_network(spec, num_input_channels, num_output_channels, deep_supervision=deep_supervision)


def build_mednext(
    num_input_channels: int,
    num_output_channels: int,
    *,
    patch_size: tuple[int, ...],
    deep_supervision: bool,
    **kwargs: Any,
) -> nn.Module:
    """Build MedNeXt as its plan says, or of `size` and `kernel_size` with a U-Net plan's topology (`mednext`)."""
    shape = parse_arguments(resolve_arguments(kwargs, patch_size), len(patch_size))
    with torch.device("meta"):
        network = MedNeXt(num_input_channels, num_output_channels, shape, deep_supervision=deep_supervision)
    _allocate(network, MEDNEXT)
    reset_parameters(network)
    return network


NETWORKS: Final[Registry[NetworkBuilder]] = Registry("network")
NETWORKS.register("unet", build_unet)
NETWORKS.register("residual-unet", build_residual_unet)
UNET_NAMES: Final = NETWORKS.names()  # nnU-Net's networks by name
NETWORKS.register(MEDNEXT, build_mednext)
TOPOLOGY_NAMES: Final = NETWORKS.names()  # built-in names, which are given the plan's arch_kwargs
NETWORKS.register("segresnet", optional.build_segresnet)
NETWORKS.register("swin-unetr", optional.build_swin_unetr)
NETWORKS.register("dynunet", optional.build_dynunet)
NETWORKS.register("primus", optional.build_primus)


def initialize(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Set initial weights in place: Kaiming normal convolutions, zero biases, plain norms (nnU-Net behaviour 7.6).

    The last norm of each residual block starts at zero, weight and bias. Every tensor is drawn exactly once.

    Args:
        network: a network on the CPU.
        generator: a CPU generator; a fixed seed if None.
    """
    source = torch.Generator().manual_seed(INIT_SEED) if generator is None else generator
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=KAIMING_SLOPE, generator=source)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.modules.batchnorm._NormBase | nn.PReLU):
            module.reset_parameters()
    for module in network.modules():
        if isinstance(module, BasicBlockD | BottleneckD):
            norm = module.last_norm
            if isinstance(norm, nn.modules.batchnorm._NormBase) and norm.affine:
                nn.init.zeros_(norm.weight)
                nn.init.zeros_(norm.bias)


def set_deep_supervision(network: nn.Module, enabled: bool) -> None:
    """Switch deep supervision of a network on or off; one without a `deep_supervision` attribute is unchanged."""
    for module in (network, getattr(network, "decoder", None)):
        if isinstance(module, nn.Module) and isinstance(getattr(module, "deep_supervision", None), bool):
            module.deep_supervision = enabled  # type: ignore[assignment]


def move_to_device(
    network: nn.Module, device: torch.device, precision: str = "auto", *, fused_norm: bool = True
) -> nn.Module:
    """Move a network to a device, in the memory format that is fastest there, and return it.

    Args:
        network: any network.
        device: to move it to.
        precision: in which it will compute, see `core.device.compute_dtype`.
        fused_norm: on CUDA, use the fused instance norm where it works; False also holds for later calls.
    """
    network = network.to(device)
    if not fused_norm:
        forbid_fused_norms(network)
    fuse_norms(network, compute_dtype(device, precision) if device.type == CUDA else None)
    dims = max((weight.ndim - 2 for weight in network.parameters() if weight.ndim in {4, 5}), default=0)
    return network.to(memory_format=input_format(network, device, dims)) if dims else network  # type: ignore[call-overload]


def input_format(network: nn.Module, device: torch.device, dims: int) -> torch.memory_format:
    """Return the memory format for input of a network with `dims` spatial axes that `move_to_device` returned."""
    return memory_format(device, dims, fused_norm=device.type == CUDA and has_fused_norms(network))


def _registered_builder(reference: str) -> NetworkBuilder | None:
    """Return the builder of a registered name or of its reference; None for any other reference.

    Raises:
        ConfigError: an unknown name; the error suggests the nearest one.
    """
    if not is_reference(reference):
        return NETWORKS.get(reference)
    builders = map(NETWORKS.get, NETWORKS.names())
    return next((builder for builder in builders if reference_of(builder) == reference), None)


@contextmanager
def _explain_errors(
    builder: NetworkBuilder, reference: str, kwargs: Mapping[str, Any], *, is_registered: bool
) -> Iterator[None]:
    """Turn an error of a builder into one about its arguments, or for a user's builder about its code."""
    contract = (
        "it is called as fn(num_input_channels, num_output_channels, *, patch_size, deep_supervision, **kwargs) with "
        f"kwargs {sorted(kwargs)}"
    )
    if not is_registered:
        with user_call(builder, f"network '{reference}'", packages={package_of(reference)}, contract=contract):
            yield
        return
    try:
        yield
    except SegwrightError:
        raise
    except Exception as error:
        if resource_error(error):
            raise
        raise ConfigError(f"network '{reference}' cannot be built: {describe_error(error)}; {contract}") from error


def _allocate(network: nn.Module, reference: str) -> None:
    """Give a network on the meta device memory for its weights on the CPU.

    Raises:
        ConfigError: it has too many.
    """
    num_weights = sum(tensor.numel() for tensor in network.parameters())
    if num_weights > MAX_WEIGHTS:
        raise ConfigError(
            f"network '{reference}' has {num_weights / 1e6:.0f} million weights, at most {MAX_WEIGHTS / 1e6:.0f} "
            "million are allowed; reduce its features_per_stage and kernel_sizes"
        )
    try:
        network._apply(_empty_on_cpu)  # type: ignore[no-untyped-call]
    except (RuntimeError, MemoryError) as error:
        size = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
        raise ConfigError(
            f"network '{reference}' has {size / 2**30:.1f} GiB of weights, more than the free memory; reduce its "
            "features_per_stage"
        ) from error


def _empty_on_cpu(tensor: Tensor) -> Tensor:
    """Return an empty tensor like one on the meta device; `to_empty` would import sympy, which takes half a second."""
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _require_bounded(reference: str, kwargs: Mapping[str, Any]) -> None:
    """Check that the arguments of another package's network are not too many or too large; they may be untrusted."""
    values: list[Any] = list(kwargs.values())
    for count, value in enumerate(values, start=1):  # grows while iterating: nested values are appended
        if isinstance(value, list | tuple | dict):
            values.extend(value.values() if isinstance(value, dict) else value)
        number = value if isinstance(value, int | float) else 0
        if not abs(number) <= MAX_ARGUMENT or count > MAX_NUM_ARGUMENTS:
            raise ConfigError(
                f"network '{reference}': the arguments contain {value!r:.40} or too many values; expected at most "
                f"{MAX_NUM_ARGUMENTS} values up to {MAX_ARGUMENT}"
            )


def _with_topology(patch_size: Sequence[int], kwargs: Mapping[str, Any], blocks_key: str) -> dict[str, Any]:
    """Return kwargs if they describe a network, else merged into a topology derived from the patch."""
    if "n_stages" in kwargs:
        return dict(kwargs)
    base = kwargs_for_patch(patch_size)
    for key in ("n_blocks_per_stage", "n_conv_per_stage"):
        if key != "n_conv_per_stage" or blocks_key != key:
            base.pop(key, None)
    return {**base, **kwargs}
