"""nnU-Net's default transforms of a sample over our augmentation, for trainer files that add their own to them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from segwright.augmentation.default import default_recipe
from segwright.augmentation.recipe import Recipe
from segwright.augmentation.spatial import Affine, Mirror
from segwright.compat.nnunet.names.transforms import SampleTransform
from segwright.core.errors import ConfigError
from segwright.data.labels import BACKGROUND, IGNORE, Labels

OLD_PARAMETERS: Final = ("order_resampling_data", "order_resampling_seg", "border_val_seg")
"""Parameters of the training hook of 2.0 to 2.4, after the fifth."""

TRAINING: Final = (
    *("patch_size", "rotation_for_DA", "deep_supervision_scales", "mirror_axes", "do_dummy_2d_data_aug"),
    *("use_mask_for_norm", "is_cascaded", "foreground_labels", "regions", "ignore_label"),
)
VALIDATION: Final = ("deep_supervision_scales", "is_cascaded", "foreground_labels", "regions", "ignore_label")
_DEFAULTS: Final[Mapping[str, Any]] = {
    **{"use_mask_for_norm": None, "is_cascaded": False, "foreground_labels": None, "regions": None},
    **{"ignore_label": None, "order_resampling_data": 3, "order_resampling_seg": 1, "border_val_seg": -1},
}


def training_transforms(*args: Any, **kwargs: Any) -> SampleTransform:
    """Return our default augmentation as the transform of a sample, from the arguments of the hook of any version.

    Raises:
        ConfigError: an argument is missing, or it is for a cascade.
    """
    names = TRAINING[:5] + OLD_PARAMETERS + TRAINING[5:] if _is_old(args, kwargs) else TRAINING
    values = {**_DEFAULTS, **dict(zip(names, args, strict=False)), **kwargs}
    _require(values, TRAINING[:5], "get_training_transforms")
    patch_size = tuple(int(size) for size in values["patch_size"])
    masked = [index for index, is_masked in enumerate(values["use_mask_for_norm"] or ()) if is_masked]
    recipe = default_recipe(patch_size, masked_channels=masked)
    in_plane = bool(values["do_dummy_2d_data_aug"])
    recipe = recipe.replace("spatial", Affine(rotation=_range(values["rotation_for_DA"]), in_plane=in_plane))
    axes = tuple(values["mirror_axes"] or ())
    recipe = recipe.replace("mirror", Mirror(axes=axes)) if axes else recipe.without("mirror")
    return DefaultTransform(recipe, patch_size, _labels(values), values["deep_supervision_scales"])


def validation_transforms(*args: Any, **kwargs: Any) -> SampleTransform:
    """Return the transform of a validation sample, which only makes the targets.

    Raises:
        ConfigError: it is for a cascade.
    """
    values = {**_DEFAULTS, "patch_size": None, **dict(zip(VALIDATION, args, strict=False)), **kwargs}
    _require(values, VALIDATION[:1], "get_validation_transforms")
    return TargetTransform(Recipe(), (), _labels(values), values["deep_supervision_scales"])


class DefaultTransform(SampleTransform):
    """Our augmentation of a sample (`image`, `segmentation`), or up to 2.4 of a batch of arrays (`data`, `seg`)."""

    def __call__(self, **sample: Any) -> dict[str, Any]:
        """Return the sample with its target, or the batch with tensors `data` and `target`."""
        if "data" not in sample:
            return self.augment(**sample)
        others = {key: value for key, value in sample.items() if key not in ("data", "seg")}
        parts = [
            self.augment(image=torch.as_tensor(image), segmentation=torch.as_tensor(label))
            for image, label in zip(sample["data"], sample["seg"], strict=True)
        ]
        targets = [part["segmentation"] for part in parts]
        target: Any
        if isinstance(targets[0], list):
            target = [torch.stack(list(level)) for level in zip(*targets, strict=True)]
        else:
            target = torch.stack(targets)
        return {**others, "data": torch.stack([part["image"] for part in parts]), "target": target}

    def augment(self, *, image: Tensor, segmentation: Tensor, **others: Any) -> dict[str, Any]:
        """Return one sample."""
        return super().__call__(image=image, segmentation=segmentation, **others)


class TargetTransform(DefaultTransform):
    """Keeps the size of the sample."""

    def augment(self, *, image: Tensor, segmentation: Tensor, **others: Any) -> dict[str, Any]:
        """Return one sample with its targets."""
        self.patch_size = tuple(image.shape[1:])
        return super().augment(image=image, segmentation=segmentation, **others)


def call_transform_hook(hook: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Call a file's transform hook with the arguments that its parameters name.

    Raises:
        ConfigError: a parameter without default is unknown.
    """
    parameters = inspect.signature(hook).parameters.values()
    variable = [each for each in parameters if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    named = [each for each in parameters if each not in variable]
    if variable and len(named) < 2:
        return hook(**{name: values[name] for name in TRAINING})
    unknown = [each.name for each in named if each.name not in values and each.default is each.empty]
    if unknown:
        raise ConfigError(f"{hook.__name__} has the parameter '{unknown[0]}', which no version of nnU-Net passes")
    return hook(**{each.name: values[each.name] for each in named if each.name in values})


def is_old_hook(hook: Callable[..., Any]) -> bool:
    """Return whether a transform hook is of 2.0 to 2.4, whose transforms take a batch of arrays."""
    return OLD_PARAMETERS[0] in inspect.signature(hook).parameters


def _is_old(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return any(name in kwargs for name in OLD_PARAMETERS) or (len(args) > 5 and isinstance(args[5], int))


def _require(values: Mapping[str, Any], names: Sequence[str], hook: str) -> None:
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"{hook} of nnUNetTrainer was called without {', '.join(missing)}")
    if values["is_cascaded"]:
        raise ConfigError(f"{hook}: own transforms are not supported for the second stage of a cascade")


def _labels(values: Mapping[str, Any]) -> Labels:
    """Return labels from what the hook knows of them."""
    ignore = values["ignore_label"]
    extra = {} if ignore is None else {IGNORE: int(ignore)}
    regions = values["regions"]
    if regions is not None:
        keys = [tuple(map(int, each)) if isinstance(each, list | tuple) else int(each) for each in regions]
        keys = [key for key in keys if key != (int(ignore) if ignore is not None else None)]
        named = {f"region {index}": key for index, key in enumerate(keys)}
        return Labels({BACKGROUND: 0, **named, **extra}, tuple(range(1, len(keys) + 1)))
    foreground = [int(value) for value in values["foreground_labels"] or (1,)]
    return Labels({BACKGROUND: 0, **{str(value): value for value in foreground}, **extra})


def _range(rotation: Any) -> tuple[float, float]:
    if isinstance(rotation, Mapping):
        rotation = max((tuple(each) for each in rotation.values()), key=lambda pair: abs(pair[1]))
    low, high = rotation
    return float(low), float(high)
