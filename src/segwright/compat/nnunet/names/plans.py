"""nnU-Net's managers of plans and configurations, over plain dicts that stay writable (nnU-Net behaviour 5.13, 5.15).

A trainer file may change `configuration["patch_size"]`; every later reader sees it, since nothing is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy.typing as npt

from segwright.compat.nnunet.names.images import ImageReaderWriter
from segwright.compat.nnunet.names.labels import LabelManager
from segwright.core.errors import PlanError, did_you_mean
from segwright.core.files.json_documents import read_json
from segwright.data.label_maps import NO_LABEL_MAP
from segwright.data.plan import KW_REQUIRES_IMPORT, Plan, upgrade_configuration
from segwright.preprocessing.resampling import resample_image, resample_label

Resampling = Callable[..., npt.NDArray[Any]]
"""fn(array (C, *S), new_shape, current_spacing, new_spacing) -> array (C, *new_shape)."""


class ConfigurationManager:
    """One configuration of a plan, its inheritance resolved.

    Attributes:
        configuration: the dict that every property reads.
    """

    def __init__(self, configuration_dict: dict[str, Any]) -> None:
        self.configuration = configuration_dict
        if "architecture" not in configuration_dict and "UNet_class_name" in configuration_dict:
            upgraded = upgrade_configuration(configuration_dict, where="plans")
            configuration_dict.clear()
            configuration_dict.update(upgraded)

    def __repr__(self) -> str:
        return repr(self.configuration)

    @property
    def data_identifier(self) -> str:
        """Folder of the preprocessed cases."""
        return str(self.configuration["data_identifier"])

    @property
    def preprocessor_name(self) -> str:
        """Name of the preprocessor."""
        return str(self.configuration["preprocessor_name"])

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""
        return int(self.configuration["batch_size"])

    @property
    def patch_size(self) -> list[int]:
        """Extents of a patch in voxels."""
        return self.configuration["patch_size"]  # type: ignore[no-any-return]

    @property
    def median_image_size_in_voxels(self) -> list[float]:
        """Of the resampled images."""
        return self.configuration["median_image_size_in_voxels"]  # type: ignore[no-any-return]

    @property
    def spacing(self) -> list[float]:
        """Of the resampled images, in mm."""
        return self.configuration["spacing"]  # type: ignore[no-any-return]

    @property
    def normalization_schemes(self) -> list[str]:
        """Of each channel."""
        return self.configuration["normalization_schemes"]  # type: ignore[no-any-return]

    @property
    def use_mask_for_norm(self) -> list[bool]:
        """Of each channel: whether only non-zero voxels were normalised."""
        return self.configuration["use_mask_for_norm"]  # type: ignore[no-any-return]

    @property
    def batch_dice(self) -> bool:
        """Whether the Dice is that of all samples of a batch together."""
        return bool(self.configuration["batch_dice"])

    @property
    def next_stage_names(self) -> list[str] | None:
        """Configurations that use the predictions of this one."""
        stages = self.configuration.get("next_stage")
        return [stages] if isinstance(stages, str) else None if stages is None else [*stages]

    @property
    def previous_stage_name(self) -> str | None:
        """The configuration whose predictions this one uses."""
        return self.configuration.get("previous_stage")

    # The network

    @property
    def network_arch_class_name(self) -> str:
        """Import path of the network's class."""
        return str(self.configuration["architecture"]["network_class_name"])

    @property
    def network_arch_init_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the network."""
        return self.configuration["architecture"]["arch_kwargs"]  # type: ignore[no-any-return]

    @property
    def network_arch_init_kwargs_req_import(self) -> list[str]:
        """Those of its arguments that hold import paths."""
        return [*self.configuration["architecture"].get("_kw_requires_import", KW_REQUIRES_IMPORT)]

    @property
    def pool_op_kernel_sizes(self) -> list[list[int]]:
        """Down-sampling of each stage and axis."""
        return self.network_arch_init_kwargs["strides"]  # type: ignore[no-any-return]

    @property
    def conv_kernel_sizes(self) -> list[list[int]]:
        """Kernel of each stage and axis; a name of 2023."""
        return self.network_arch_init_kwargs["kernel_sizes"]  # type: ignore[no-any-return]

    @property
    def num_pool_per_axis(self) -> list[int]:
        """How often each axis is halved; a name of 2023."""
        return [sum(step > 1 for step in steps) for steps in zip(*self.pool_op_kernel_sizes, strict=True)]

    @property
    def UNet_class_name(self) -> str:
        """Name of the network's class; a name of 2023."""
        return self.network_arch_class_name.rpartition(".")[2]

    @property
    def UNet_base_num_features(self) -> int:
        """Channels of the first stage; a name of 2023."""
        return int(self.network_arch_init_kwargs["features_per_stage"][0])

    @property
    def unet_max_num_features(self) -> int:
        """Largest number of channels; a name of 2023."""
        return int(max(self.network_arch_init_kwargs["features_per_stage"]))

    @property
    def n_conv_per_stage_encoder(self) -> list[int]:
        """Convolutions, or residual blocks, of each stage; a name of 2023."""
        kwargs = self.network_arch_init_kwargs
        return kwargs["n_conv_per_stage" if "n_conv_per_stage" in kwargs else "n_blocks_per_stage"]  # type: ignore[no-any-return]

    @property
    def n_conv_per_stage_decoder(self) -> list[int]:
        """Convolutions of each stage of the decoder; a name of 2023."""
        return self.network_arch_init_kwargs["n_conv_per_stage_decoder"]  # type: ignore[no-any-return]

    # Resampling

    @property
    def resampling_fn_data(self) -> Resampling:
        """Resamples images."""
        return self._resampling("data", _resample_volume)

    @property
    def resampling_fn_seg(self) -> Resampling:
        """Resamples label maps."""
        return self._resampling("seg", _resample_labels)

    @property
    def resampling_fn_probabilities(self) -> Resampling:
        """Resamples logits or probabilities."""
        return self._resampling("probabilities", _resample_volume)

    def _resampling(self, kind: str, function: Resampling) -> Resampling:
        name = self.configuration[f"resampling_fn_{kind}"]
        return partial(function, name, self.configuration[f"resampling_fn_{kind}_kwargs"])


class PlansManager:
    """A plan.

    Args:
        plans_file_or_dict: the document or its file.
        label_map: from values in label files of the dataset to labels.

    Attributes:
        plans: the document.
    """

    def __init__(
        self, plans_file_or_dict: str | PathLike[str] | dict[str, Any], *, label_map: Mapping[int, int] = NO_LABEL_MAP
    ) -> None:
        given = plans_file_or_dict
        self._label_map = label_map
        self.plans: dict[str, Any] = given if isinstance(given, dict) else read_json(Path(given))
        self._managers: dict[str, ConfigurationManager] = {}

    def __repr__(self) -> str:
        return repr(self.plans)

    def get_configuration(self, configuration_name: str) -> ConfigurationManager:
        """Return a configuration, each time the same object.

        Raises:
            PlanError: there is none of this name, or configurations inherit from each other.
        """
        if configuration_name not in self._managers:
            resolved = self._resolve(configuration_name, ())
            self._managers[configuration_name] = ConfigurationManager(resolved)
        return self._managers[configuration_name]

    def document(self) -> dict[str, Any]:
        """Return a copy of the plan with all that was changed in its configurations, for saving."""
        changed = {name: manager.configuration for name, manager in self._managers.items()}
        configurations = {**self.plans["configurations"], **changed}
        return copy.deepcopy({**self.plans, "configurations": configurations})

    def to_plan(self) -> Plan:
        """Return the plan, with what was changed, checked.

        Raises:
            PlanError: a value does not fit.
        """
        return Plan.from_json(self.document())

    @property
    def dataset_name(self) -> str:
        """Name of the dataset."""
        return str(self.plans["dataset_name"])

    @property
    def plans_name(self) -> str:
        """Name of the plan."""
        return str(self.plans["plans_name"])

    @property
    def original_median_spacing_after_transp(self) -> list[float]:
        """Of the dataset, in mm."""
        return self.plans["original_median_spacing_after_transp"]  # type: ignore[no-any-return]

    @property
    def original_median_shape_after_transp(self) -> list[float]:
        """Of the dataset, in voxels."""
        return self.plans["original_median_shape_after_transp"]  # type: ignore[no-any-return]

    @property
    def image_reader_writer_class(self) -> Callable[[], ImageReaderWriter]:
        """Makes the reader and writer of the dataset's files."""
        return partial(ImageReaderWriter, str(self.plans["image_reader_writer"]), self._label_map)

    @property
    def transpose_forward(self) -> list[int]:
        """Order of the axes in preprocessed data."""
        return self.plans["transpose_forward"]  # type: ignore[no-any-return]

    @property
    def transpose_backward(self) -> list[int]:
        """The inverse of `transpose_forward`."""
        return self.plans["transpose_backward"]  # type: ignore[no-any-return]

    @property
    def available_configurations(self) -> list[str]:
        """Names of the configurations."""
        return [*self.plans["configurations"]]

    @property
    def experiment_planner_name(self) -> str:
        """Name of the planner."""
        return str(self.plans.get("experiment_planner_used", ""))

    @property
    def label_manager_class(self) -> type[LabelManager]:
        """Class of the label manager."""
        return LabelManager

    def get_label_manager(self, dataset_json: Mapping[str, Any], **kwargs: Any) -> LabelManager:
        """Return the labels of a dataset."""
        return LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"), **kwargs)

    @property
    def foreground_intensity_properties_per_channel(self) -> dict[str, dict[str, float]]:
        """Intensity statistics by channel."""
        old = "foreground_intensity_properties_by_modality"
        new = "foreground_intensity_properties_per_channel"
        return self.plans[new if new in self.plans else old]  # type: ignore[no-any-return]

    def _resolve(self, name: str, descendants: tuple[str, ...]) -> dict[str, Any]:
        """Return the dict of a configuration: that of the plan itself if it inherits nothing."""
        configurations = self.plans["configurations"]
        if name not in configurations:
            raise PlanError(
                f"plans '{self.plans_name}' have no configuration '{name}'{did_you_mean(name, configurations)}"
            )
        if name in descendants:
            raise PlanError(
                f"plans '{self.plans_name}': configurations inherit from each other in a circle at '{name}'; remove "
                "one inherits_from"
            )
        own: dict[str, Any] = configurations[name]
        parent = own.get("inherits_from")
        if parent is None:
            return own
        return copy.deepcopy({**self._resolve(parent, (*descendants, name)), **own})


def determine_num_input_channels(
    plans_manager: PlansManager,
    configuration_or_config_manager: str | ConfigurationManager,
    dataset_json: Mapping[str, Any],
) -> int:
    """Return the network's input channels: those of the images, and of the labels of a cascade's previous stage."""
    configuration = configuration_or_config_manager
    if isinstance(configuration, str):
        configuration = plans_manager.get_configuration(configuration)
    channels = len(dataset_json.get("modality") or dataset_json["channel_names"])
    if configuration.previous_stage_name is None:
        return channels
    return channels + len(plans_manager.get_label_manager(dataset_json).foreground_labels)


def _resample_volume(
    name: str,
    kwargs: Mapping[str, Any],
    data: npt.NDArray[Any],
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
) -> npt.NDArray[Any]:
    resampled: npt.NDArray[Any] = resample_image(data, new_shape, current_spacing, new_spacing, name, kwargs)
    return resampled


def _resample_labels(
    name: str,
    kwargs: Mapping[str, Any],
    data: npt.NDArray[Any],
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
) -> npt.NDArray[Any]:
    resampled: npt.NDArray[Any] = resample_label(data, new_shape, current_spacing, new_spacing, name, kwargs)
    return resampled
