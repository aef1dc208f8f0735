"""nnU-Net's planners (nnU-Net behaviour 5.1) and those of MedNeXt: networks, memory references, names, resampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from segwright.core.errors import PlanError, did_you_mean
from segwright.networks.mednext import sizes as mednext

ANISOTROPY = 3
"""An axis this many times coarser than the others is resampled separately (nnU-Net's paper; nnU-Net behaviour 5.1)."""
ANISOTROPY_PER_STAGE = 2
"""Axes are pooled together, and get a kernel of 3, while their spacings differ by less than this factor."""
MIN_EDGE = 4
"""Shortest edge of the lowest-resolution feature map, voxels."""
BASE_FEATURES = 32
MAX_FEATURES: Mapping[int, int] = MappingProxyType({2: 512, 3: 320})
"""Maximum number of channels of a stage, by number of spatial axes."""
REFERENCE_BATCH: Mapping[int, int] = MappingProxyType({2: 12, 3: 2})
"""Batch size of the reference memory, by number of spatial axes."""
MIN_BATCH = 2
INITIAL_PATCH_VOXELS: Mapping[int, int] = MappingProxyType({2: 2048**2, 3: 256**3})
"""Voxels of the initial patch, by number of spatial axes."""
LOWRES_COVERAGE = 0.25
"""A low-resolution configuration is planned if a patch covers less than this fraction of the median image."""
LOWRES_STEP = 1.03
"""Factor on the spacing per step of the low-resolution search."""
LOWRES_MIN_RATIO = 2
"""Low resolution is kept if the median image then has at least this many times fewer voxels."""
MASK_BELOW = 0.75
"""Normalise inside the mask if cropping keeps less than this fraction of the median image."""

Resampling = Literal["default", "torch", "torch-sepz", "none"]


class Network(Enum):
    """Network families; the value is the class name in the plans."""

    PLAIN = "PlainConvUNet"
    RESIDUAL = "ResidualEncoderUNet"
    MEDNEXT = mednext.NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One planner.

    Attributes:
        name: Name on the command line.
        planner: Class name that nnU-Net writes to `experiment_planner_used`, or one that it does not have.
        plans_name: Default name of the plans, hence of the file.
        network: Network family.
        gpu_memory_gb: GPU memory target, GB, for which `reference_elements` were measured.
        reference_elements: Feature-map elements of one sample that fit `gpu_memory_gb` at `REFERENCE_BATCH`, by
            number of axes.
        max_dataset_covered: Maximum fraction of the dataset's voxels in a batch.
        encoder_blocks: Blocks per encoder stage of a U-Net, for the deepest network.
        decoder_convs: Convolutions per decoder stage of a U-Net, for the deepest network.
        mednext_size: Size of MedNeXt.
        kernel_size: Kernel of a stage where the axes' spacings are comparable.
        shrinks_2d_late: 2D patches shrink only if a batch of two does not fit (nnU-Net behaviour 5.9).
        shares_data: `2d` and `3d_fullres` use the default plans' preprocessed data (nnU-Net behaviour 5.2).
        resampling: Resampling variant.
    """

    name: str
    planner: str
    plans_name: str
    network: Network
    gpu_memory_gb: float
    reference_elements: Mapping[int, float]
    max_dataset_covered: float
    encoder_blocks: tuple[int, ...] = ()
    decoder_convs: tuple[int, ...] = ()
    mednext_size: mednext.Size | None = None
    kernel_size: int = 3
    shrinks_2d_late: bool = False
    shares_data: bool = False
    resampling: Resampling = "default"


def _residual(name: str, planner: str, plans_name: str, memory: float, cap: float, in_3d: int, in_2d: int) -> Preset:
    return Preset(
        name=name,
        planner=planner,
        plans_name=plans_name,
        network=Network.RESIDUAL,
        gpu_memory_gb=memory,
        reference_elements=MappingProxyType({3: in_3d, 2: in_2d}),
        max_dataset_covered=cap,
        encoder_blocks=(1, 3, 4, *(6,) * 10),
        decoder_convs=(1,) * 12,
        shares_data=True,
    )


_DEFAULT = Preset(
    name="default",
    planner="ExperimentPlanner",
    plans_name="nnUNetPlans",
    network=Network.PLAIN,
    gpu_memory_gb=8,
    reference_elements=MappingProxyType({3: 560_000_000, 2: 85_000_000}),
    max_dataset_covered=0.05,
    encoder_blocks=(2,) * 14,
    decoder_convs=(2,) * 13,
    shrinks_2d_late=True,
)

MEDNEXT_GPU_MEMORY_GB: Mapping[str, float] = MappingProxyType({"S": 24, "B": 24, "M": 40, "L": 40})
"""Those of nnU-Net's ResEnc L and XL; the patches of S and M are then close to the paper's 128^3 at batch size 2."""

MEDNEXT_ELEMENTS_PER_GB: Mapping[int, float] = MappingProxyType({3: 87_500_000, 2: 14_000_000})
"""Feature-map elements of one sample per GB of GPU memory, by number of axes: those of nnU-Net's ResEnc L in 3D and XL
in 2D, the lower of the two. For each element of a convolution's output, autograd keeps 1.7 to 1.8 elements of MedNeXt
and 1.9 of a U-Net (counted for a 32^3 patch), so the estimate is on the safe side. Not measured on a GPU."""

MEDNEXT_DATASET_COVERED = 0.05
"""As in nnU-Net's default planner: MedNeXt is slow, and the paper trained with two patches per step."""


def _mednext(letter: str, kernel_size: int) -> Preset:
    memory, suffix = MEDNEXT_GPU_MEMORY_GB[letter], "" if kernel_size == mednext.KERNEL_SIZES[0] else f"k{kernel_size}"
    return Preset(
        name="-".join(filter(None, (mednext.NAME, letter.lower(), suffix))),
        planner="MedNeXtPlanner",
        plans_name=f"MedNeXt{letter}{suffix}Plans",
        network=Network.MEDNEXT,
        gpu_memory_gb=memory,
        reference_elements=MappingProxyType({dims: memory * each for dims, each in MEDNEXT_ELEMENTS_PER_GB.items()}),
        max_dataset_covered=MEDNEXT_DATASET_COVERED,
        mednext_size=mednext.SIZES[letter],
        kernel_size=kernel_size,
        shrinks_2d_late=True,
        shares_data=True,
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        item.name: item
        for item in (
            _DEFAULT,
            _residual("resenc", "ResEncUNetPlanner", "nnUNetResEncUNetPlans", 8, 0.05, 680_000_000, 135_000_000),
            _residual("resenc-m", "nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans", 8, 1, 680_000_000, 135_000_000),
            _residual("resenc-l", "nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans", 24, 1, 2_100_000_000, 380_000_000),
            _residual(
                "resenc-xl", "nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans", 40, 1, 3_600_000_000, 560_000_000
            ),
            *(_mednext(letter, kernel_size) for letter in mednext.SIZES for kernel_size in mednext.KERNEL_SIZES),
        )
    }
)
"""Presets with default resampling, by name."""

RESAMPLINGS: tuple[str, ...] = get_args(Resampling)

_SUFFIX: Mapping[str, str] = MappingProxyType(
    {"torch": "_torchres", "torch-sepz": "_torchres_sepz", "none": "_noResampling"}
)
_VARIANT_PLANNERS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("default", "torch"): "nnUNetPlanner_torchres",
        ("resenc-l", "torch"): "nnUNetPlannerResEncL_torchres",
        ("resenc-l", "torch-sepz"): "nnUNetPlannerResEncL_torchres_sepz",
        ("resenc-l", "none"): "nnUNetPlannerResEncL_noResampling",
    }
)


def preset(name: str, resampling: str = "default") -> Preset:
    """Return a preset by name, with one of the resampling variants.

    Where nnU-Net has a planner for the combination, its names are used. Otherwise the plans get the usual suffix and
    `experiment_planner_used` stays the preset's own planner, a class that nnU-Net can find.

    Raises:
        PlanError: unknown preset or resampling.
    """
    if name not in PRESETS:
        raise PlanError(f"unknown preset '{name}'{did_you_mean(name, PRESETS)}")
    base = PRESETS[name]
    if resampling == "default":
        return base
    if resampling not in _SUFFIX:
        raise PlanError(f"unknown resampling '{resampling}'{did_you_mean(resampling, RESAMPLINGS)}")
    return replace(
        base,
        planner=_VARIANT_PLANNERS.get((name, resampling), base.planner),
        plans_name=base.plans_name + _SUFFIX[resampling],
        shares_data=False,
        resampling=resampling,  # type: ignore[arg-type]
    )


def resampling_functions(resampling: Resampling) -> dict[str, Any]:
    """Return the six resampling keys of a configuration (nnU-Net behaviour 5.11)."""
    data, seg, probabilities = (_resampling_kwargs(resampling, kind) for kind in ("data", "seg", "probabilities"))
    function = {"default": "resample_data_or_seg_to_shape", "none": "no_resampling_hack"}.get(
        resampling, "resample_torch_fornnunet"
    )
    return {
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_data_kwargs": data,
        "resampling_fn_seg_kwargs": seg,
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": probabilities,
    }


def _resampling_kwargs(resampling: Resampling, kind: str) -> dict[str, Any]:
    if resampling == "none":
        return {}
    is_seg = {"is_seg": kind == "seg"}
    if resampling == "default":
        return {**is_seg, "order": 3 if kind == "data" else 1, "order_z": 0, "force_separate_z": None}
    separate = {"force_separate_z": False if resampling == "torch" else None, "memefficient_seg_resampling": False}
    return {**is_seg, **separate, **({"separate_z_anisotropy_threshold": ANISOTROPY} if resampling != "torch" else {})}


def plan_command(dataset: Path | str | int, plans_name: str) -> str:
    """Return the command that makes plans of a name, for error messages.

    >>> plan_command("4", "nnUNetPlans"), plan_command("4", "mine")
    ('segwright plan 4', 'segwright plan 4 --name mine')
    """
    by_plans = {each.plans_name: f" --preset {each.name}" for each in PRESETS.values()} | {_DEFAULT.plans_name: ""}
    return f"segwright plan {dataset}{by_plans.get(plans_name, f' --name {plans_name}')}"
