"""What the base class does about cases, augmentation and batches in a training with a trainer file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from segwright.augmentation.compose import SPATIAL
from segwright.augmentation.recipe import Recipe
from segwright.augmentation.spatial import Affine, Mirror
from segwright.compat.nnunet.default_transforms import is_old_hook
from segwright.compat.nnunet.hooks.attributes import LOADER_SETTINGS, SettingsInUse
from segwright.compat.nnunet.hooks.iterators import BatchIterator, loaders_over
from segwright.compat.nnunet.hooks.transform_loader import file_loaders, plain_loaders
from segwright.compat.nnunet.names.data import make_dataset
from segwright.compat.nnunet.segmentation import keep_segmentation
from segwright.compat.nnunet.trainer import is_before_2_6, nnUNetTrainer, overrides
from segwright.core.errors import ConfigError
from segwright.core.extensions.user_code import UserCodeError, source_location
from segwright.core.files.json_documents import read_json
from segwright.data.crossval.splits import Split
from segwright.evaluation.scores import Scores
from segwright.training.loading.loaders import MIRROR
from segwright.training.trainer import Trainer
from segwright.workspace import SPLITS_JSON

ROTATION_HOOK: Final = "configure_rotation_dummyDA_mirroring_and_inital_patch_size"
SMALLEST_SCALE: Final = 0.85
"""By which nnU-Net enlarges what it reads (nnU-Net behaviour 10.2)."""

TRANSFORM_HOOKS: Final = ("get_training_transforms", "get_validation_transforms", "get_plain_dataloaders")
"""Hooks with which batches are read and augmented in nnU-Net's manner."""


class DataHooks:
    """The base class's hooks about data.

    Args:
        run: the training.
        user: the object of the trainer file.
        preprocessed_folder: of the dataset; None where it is unknown.
        settings: remembers which attributes are in use.
    """

    def __init__(
        self, run: Trainer, user: nnUNetTrainer, preprocessed_folder: Path | None, settings: SettingsInUse
    ) -> None:
        self._run = run
        self._user = user
        self._cls = type(user)
        self._folder = preprocessed_folder
        self._settings = settings
        self.step_hook: Any = None

    # Augmentation

    def configure_augmentation(self) -> tuple[Any, bool, Any, Any]:
        """Return rotation range, rotation in the plane only, size to read, mirrored axes; allow these at inference."""
        recipe = self._run.recipe
        spatial = recipe.spatial
        rotation = (0.0, 0.0) if spatial is None else tuple(map(float, spatial.rotation))
        in_plane = spatial is not None and spatial.in_plane
        axes = recipe.mirror_axes
        self._user.inference_allowed_mirroring_axes = axes
        patch_size = self._run.configuration.patch_size
        given: Any = rotation if not self._is_old else _rotation_by_axis(rotation, len(patch_size), in_plane)
        return given, in_plane, initial_patch_size(patch_size, rotation, in_plane=in_plane), axes

    @property
    def _is_old(self) -> bool:
        """Whether the file is for a version with batchgenerators, in which rotation ranges are a dict."""
        own = overrides(self._cls, TRANSFORM_HOOKS[0]) and is_old_hook(self._user.get_training_transforms)
        return own or overrides(self._cls, TRANSFORM_HOOKS[2])

    def apply_augmentation(self) -> None:
        """Change our augmentation as the file's hook says.

        Raises:
            UserCodeError: the hook returned something else than four values.
            ConfigError: our augmentation cannot do what it returned.
        """
        run, user = self._run, self._user
        hook = getattr(user, ROTATION_HOOK)
        if not overrides(self._cls, ROTATION_HOOK):
            hook()
            return
        returned = hook()
        if not isinstance(returned, tuple | list) or len(returned) != 4:
            raise UserCodeError(f"{source_location(hook)}: {ROTATION_HOOK} must return four values")
        rotation, in_plane, _, axes = returned
        run.recipe = _with_rotation(run.recipe, _rotation_range(rotation, hook, in_plane=in_plane), bool(in_plane))
        run.recipe = _with_mirroring(run.recipe, tuple(axes or ()))

    def mirror_axes(self) -> tuple[int, ...]:
        """Return the axes that predictions may mirror."""
        return tuple(int(axis) for axis in self._user.inference_allowed_mirroring_axes or ())

    # Cases

    def split_cases(self) -> tuple[list[str], list[str]]:
        """Return the training and validation cases of the fold."""
        return [*self._run.split.train], [*self._run.split.val]

    def apply_split(self) -> None:
        """Use the cases of the file's `do_split`.

        Raises:
            UserCodeError: it did not return two lists of cases.
        """
        hook = self._user.do_split
        returned: Any = hook()
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise UserCodeError(f"{source_location(hook)}: do_split must return (training cases, validation cases)")
        self._run.split = Split(train=tuple(map(str, returned[0])), val=tuple(map(str, returned[1])))

    def splits(self) -> list[Mapping[str, Sequence[str]]]:
        """Return the content of `splits_final.json`."""
        folds: list[Mapping[str, Sequence[str]]] = [] if self._folder is None else read_json(self._folder / SPLITS_JSON)
        return folds

    def datasets(self) -> tuple[Any, Any]:
        """Return the datasets of training and validation cases."""
        folder, split = self._cases_folder(), self._run.split
        before = is_before_2_6(self._cls)
        previous = self._user.folder_with_segs_from_previous_stage
        training, validation = (
            make_dataset(folder, names, previous, before_2_6=before) for names in (split.train, split.val)
        )
        return training, validation

    def _cases_folder(self) -> str:
        folder = self._user.preprocessed_dataset_folder
        if folder is None:
            raise ConfigError(f"{self._cls.__name__} reads preprocessed cases itself, but their folder is not known")
        return folder

    # Batches

    def build(self) -> tuple[Any, Any]:
        """Return the loaders of training and validation batches, with the file's cases and transforms."""
        self._settings.use(LOADER_SETTINGS, "the loader")
        own_datasets = overrides(self._cls, "get_tr_and_val_datasets")
        is_plain = True
        if own_datasets:
            hook = self._user.get_tr_and_val_datasets
            sets: Any = hook()
            train, val = (_identifiers(each, hook) for each in sets)
            self._run.split = Split(train=train, val=val)
            is_plain = all(type(each).__module__.startswith("segwright.") for each in sets)
        else:
            sets = None
        if is_plain and not any(overrides(self._cls, hook_name) for hook_name in TRANSFORM_HOOKS):
            return Trainer.get_dataloaders(self._run)
        augmentation: Any = getattr(self._user, ROTATION_HOOK)()
        return file_loaders(self._run, self._user, sets or self.datasets(), augmentation)

    def dataloaders(self) -> tuple[BatchIterator, BatchIterator]:
        """Return endless iterators over the batches."""
        training, validation = self.build()
        return self.iterators(training, validation)

    def iterators(self, training: Any, validation: Any) -> tuple[BatchIterator, BatchIterator]:
        """Return endless iterators over the batches of two loaders."""
        run = self._run
        return (
            BatchIterator(training, lambda: (run.current_epoch, run.epoch_step), self.step_hook),
            BatchIterator(validation, lambda: (run.current_epoch, 0)),
        )

    def plain_dataloaders(self, initial_patch_size: Any, dim: int) -> tuple[Any, Any]:
        """Return nnU-Net's loaders without transforms; `dim` follows from the size."""
        del dim
        return plain_loaders(
            self._user, self._user.get_tr_and_val_datasets(), [int(size) for size in initial_patch_size]
        )

    def loaders(self) -> tuple[Any, Any]:
        """Return the loaders for our loop, and set the file's iterators.

        Raises:
            UserCodeError: the file's hook did not return two iterators.
        """
        run, user, hook = self._run, self._user, self._user.get_dataloaders
        if not overrides(self._cls, "get_dataloaders"):
            training, validation = self.build()
            user.dataloader_train, user.dataloader_val = self.iterators(training, validation)
            return training, validation
        pair: Any = hook()
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(hasattr(each, "__next__") for each in pair):
            raise UserCodeError(f"{source_location(hook)}: get_dataloaders must return two iterators over batches")
        user.dataloader_train, user.dataloader_val = pair
        config = run.config
        own = loaders_over(
            pair, seed=config.seed, purpose="batches", device=run.device, deterministic=config.deterministic
        )
        training, validation = (
            each.loader if isinstance(each, BatchIterator) else loader for each, loader in zip(pair, own, strict=True)
        )
        return training, validation

    def validate(self) -> Scores:
        """Predict and score the validation cases with the mirror axes that the file allows."""
        run = self._run
        augmentation = run.recipe
        run.recipe = _with_mirroring(run.recipe, self.mirror_axes())
        handle = keep_segmentation(run.network, run.labels.num_heads)
        try:
            return Trainer.perform_actual_validation(run)
        finally:
            run.recipe = augmentation
            handle.remove()


def initial_patch_size(patch_size: Sequence[int], rotation: Sequence[float], *, in_plane: bool) -> tuple[int, ...]:
    """Return the size to read, in voxels, so that a rotated and scaled patch of `patch_size` lies inside."""
    angle = min(max(abs(value) for value in rotation), math.pi / 2)
    axes = np.asarray(patch_size[1:] if in_plane else patch_size, dtype=float)
    size = axes
    for first in range(len(axes)):
        for second in range(first):
            turned = axes.copy()
            turned[first] = math.cos(angle) * axes[first] + math.sin(angle) * axes[second]
            turned[second] = math.cos(angle) * axes[second] + math.sin(angle) * axes[first]
            size = np.maximum(size, turned)
    enlarged = tuple(math.ceil(value / SMALLEST_SCALE) for value in size)
    return (patch_size[0], *enlarged) if in_plane else enlarged


def _rotation_by_axis(rotation: Sequence[float], dims: int, in_plane: bool) -> dict[str, tuple[float, float]]:
    low, high = rotation
    only_first = in_plane or dims == 2
    others = (0.0, 0.0) if only_first else (low, high)
    return {"x": (low, high), "y": others, "z": others}


def _rotation_range(rotation: Any, hook: Any, *, in_plane: bool) -> tuple[float, float]:
    """Return one range of angles in radians.

    Raises:
        ConfigError: it differs between axes, or is no range.
    """
    if isinstance(rotation, Mapping):
        ranges = [tuple(map(float, rotation[key])) for key in ("x", "y", "z") if key in rotation]
        turned = [each for each in ranges if any(each)]
        if in_plane or len(turned) <= 1:
            rotation = turned[0] if turned else (0.0, 0.0)
        elif len({*ranges}) > 1:
            raise ConfigError(
                f"{source_location(hook)}: {ROTATION_HOOK} returned different rotation ranges for the axes "
                f"({json.dumps(rotation)}); Segwright rotates about all axes with one range"
            )
        else:
            rotation = ranges[0]
    if rotation is None:
        return (0.0, 0.0)
    if isinstance(rotation, int | float):
        return (-float(rotation), float(rotation))
    try:
        low, high = (float(value) for value in rotation)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{source_location(hook)}: {ROTATION_HOOK} returned the rotation {rotation!r}; expected (low, high) in "
            "radians"
        ) from error
    return low, high


def _with_rotation(recipe: Recipe, rotation: tuple[float, float], in_plane: bool) -> Recipe:
    spatial = recipe.spatial
    if spatial is None:
        return recipe if not any(rotation) else replace(recipe, spatial=Affine(rotation=rotation, in_plane=in_plane))
    if math.isclose(spatial.rotation[0], rotation[0]) and math.isclose(spatial.rotation[1], rotation[1]):
        rotation = (spatial.rotation[0], spatial.rotation[1])
    return recipe.replace(SPATIAL, replace(spatial, rotation=rotation, in_plane=in_plane))


def _with_mirroring(recipe: Recipe, axes: tuple[int, ...]) -> Recipe:
    """Return the recipe with these mirrored axes."""
    if axes == recipe.mirror_axes:
        return recipe
    if MIRROR not in recipe.names():
        return recipe if not axes else recipe.insert_after(recipe.names()[-1], MIRROR, Mirror(axes=axes))
    if not axes:
        return recipe.without(MIRROR)
    mirror = next(step.transform for step in recipe.steps if step.name == MIRROR)
    return recipe.replace(MIRROR, replace(mirror, axes=axes) if isinstance(mirror, Mirror) else Mirror(axes=axes))


def _identifiers(dataset: Any, hook: Any) -> tuple[str, ...]:
    """Return the cases of a dataset object.

    Raises:
        UserCodeError: it does not list them.
    """
    if hasattr(dataset, "identifiers"):
        return tuple(map(str, dataset.identifiers))
    if hasattr(dataset, "keys"):
        return tuple(map(str, dataset.keys()))
    raise UserCodeError(
        f"{source_location(hook)}: get_tr_and_val_datasets returned a {type(dataset).__name__}, which has neither "
        "identifiers nor keys()"
    )
