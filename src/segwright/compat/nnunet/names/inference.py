"""nnU-Net's functions for the final validation, over our predictor, export and scores.

Array letters: C channels, H heads, S spatial axes of the preprocessed case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segwright.compat.nnunet.names.data import PROVENANCE, provenance_of
from segwright.compat.nnunet.names.images import ImageReaderWriter
from segwright.compat.nnunet.names.labels import LabelManager
from segwright.compat.nnunet.names.plans import ConfigurationManager, PlansManager
from segwright.core.device import resolve_device
from segwright.core.errors import ConfigError, DatasetError
from segwright.core.files.json_documents import read_json
from segwright.data.label_maps import NO_LABEL_MAP
from segwright.data.labels import BACKGROUND, ClassKey, Labels
from segwright.data.plan import Configuration
from segwright.data.preprocessed.previous_stage import StageMaps
from segwright.data.preprocessed.provenance import Provenance
from segwright.evaluation.scores import class_key, evaluate_files, pair_files
from segwright.inference.export.labels import ProbabilityArray, export_planes, save_labels
from segwright.inference.export.to_original_grid import InverseResampling
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.predictor import Predictor
from segwright.inference.window.stitching import Planes
from segwright.inference.window.tiling import DEFAULT_STEP, tile_starts
from segwright.preprocessing.pipeline import full_spacing
from segwright.preprocessing.resampling import VolumeResampler

UNKNOWN_WEIGHTS = "unknown"
"""Hash of the weights that made a map of a cascade: our cascade predicts such maps again."""

References = Mapping[str, Path] | Path | None
"""Folder of the reference label maps, or the file of each case."""


def compute_gaussian(
    tile_size: Sequence[int],
    sigma_scale: float = 1.0 / 8,
    value_scaling_factor: float = 1,
    dtype: torch.dtype = torch.float16,
    device: torch.device | None = None,
) -> Tensor:
    """Return the weight of each voxel of a tile: a Gaussian around the middle, nowhere 0 (nnU-Net behaviour 11.3).

    Args:
        tile_size: of a tile.
        sigma_scale: standard deviation as a share of the tile's size.
        value_scaling_factor: the largest value.
        dtype: of the result.
        device: of the result; the CPU if None.
    """
    weights = torch.ones((), dtype=torch.float64)
    for size in tile_size:
        distance = (torch.arange(size, dtype=torch.float64) - size // 2) / (size * sigma_scale)
        weights = weights[..., None] * torch.exp(-0.5 * distance**2)
    rounded = (weights * value_scaling_factor).to(dtype)
    return torch.clamp_min(rounded, rounded[rounded > 0].min()).to(device or torch.device("cpu"))


def compute_steps_for_sliding_window(
    image_size: Sequence[int], tile_size: Sequence[int], tile_step_size: float
) -> list[list[int]]:
    """Return the first voxels of the tiles along each axis."""
    return [[*starts] for starts in tile_starts(image_size, tile_size, tile_step_size)]


class nnUNetPredictor:
    """Predicts preprocessed cases of a training; other files are predicted by `segwright predict`.

    Args:
        tile_step_size: distance of tiles as a share of their size.
        use_gaussian: must be True.
        use_mirroring: average mirrored views.
        perform_everything_on_device: has no effect: sums of tiles are where they fit.
        device: of the network; the best one if None.
        verbose: has no effect.
        verbose_preprocessing: has no effect.
        allow_tqdm: has no effect.
    """

    def __init__(
        self,
        tile_step_size: float = DEFAULT_STEP,
        use_gaussian: bool = True,
        use_mirroring: bool = True,
        perform_everything_on_device: bool = True,
        device: torch.device | None = None,
        verbose: bool = False,
        verbose_preprocessing: bool = False,
        allow_tqdm: bool = True,
        perform_everything_on_gpu: bool = True,
    ) -> None:
        if not use_gaussian:
            raise ConfigError("nnUNetPredictor: use_gaussian=False is not offered; tiles are weighted by a Gaussian")
        self.tile_step_size = tile_step_size
        self.use_gaussian = use_gaussian
        self.use_mirroring = use_mirroring
        self.perform_everything_on_device = perform_everything_on_device and perform_everything_on_gpu
        self.device = resolve_device() if device is None else device
        self.verbose = verbose
        self.verbose_preprocessing = verbose_preprocessing
        self.allow_tqdm = allow_tqdm

    def manual_initialization(
        self,
        network: nn.Module,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        parameters: Sequence[Mapping[str, Tensor]] | None,
        dataset_json: dict[str, Any],
        trainer_name: str,
        inference_allowed_mirroring_axes: Sequence[int] | None,
    ) -> None:
        """Set the network and what it needs.

        Args:
            network: its deep supervision off.
            plans_manager: of the training.
            configuration_manager: of the training.
            parameters: weights of each fold, which `predict_logits_from_preprocessed_data` averages.
            dataset_json: of the dataset.
            trainer_name: of the class.
            inference_allowed_mirroring_axes: which mirrored views may be used.
        """
        self.network = network
        self.plans_manager = plans_manager
        self.configuration_manager = configuration_manager
        self.list_of_parameters = parameters
        self.dataset_json = dataset_json
        self.trainer_name = trainer_name
        self.allowed_mirroring_axes = inference_allowed_mirroring_axes
        self.label_manager = plans_manager.get_label_manager(dataset_json)

    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Tensor:
        """Return the logits (H, *S), float32 on the CPU, of a preprocessed image (C, *S)."""
        self.network.eval()
        predictor = Predictor(
            [self.network],
            self.plans_manager.to_plan(),
            Configuration.from_json(self.configuration_manager.configuration),
            self.label_manager.labels,
            device=self.device,
            mirror_axes=tuple(self.allowed_mirroring_axes or ()) if self.use_mirroring else (),
            step=self.tile_step_size,
        )
        return predictor.predict_preprocessed(torch.as_tensor(input_image).float())

    def predict_logits_from_preprocessed_data(self, data: Tensor) -> Tensor:
        """Return the mean logits (H, *S) of all given weights, or of the network as it is."""
        if not self.list_of_parameters:
            return self.predict_sliding_window_return_logits(data)
        total: Tensor | None = None
        for weights in self.list_of_parameters:
            self.network.load_state_dict(weights)
            logits = self.predict_sliding_window_return_logits(data)
            total = logits if total is None else total + logits
        assert total is not None
        return total / len(self.list_of_parameters)

    def initialize_from_trained_model_folder(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse to open a model of nnU-Net.

        Raises:
            ConfigError: always.
        """
        _refuse("initialize_from_trained_model_folder")

    def predict_from_files(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse to predict image files.

        Raises:
            ConfigError: always.
        """
        _refuse("predict_from_files")

    def predict_single_npy_array(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse to predict an image that is not preprocessed.

        Raises:
            ConfigError: always.
        """
        _refuse("predict_single_npy_array")

    predict_from_files_sequential = predict_from_files
    predict_from_list_of_npy_arrays = predict_single_npy_array
    predict_from_data_iterator = predict_single_npy_array


def convert_predicted_logits_to_segmentation_with_correct_shape(
    predicted_logits: Tensor | npt.NDArray[Any],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    label_manager: LabelManager,
    properties_dict: Mapping[str, Any],
    return_probabilities: bool = False,
    num_threads_torch: int = 8,
) -> Any:
    """Return the label map of logits (H, *S), in the axis order and on the grid of the case's image.

    Args:
        predicted_logits: of the network.
        plans_manager: of the training.
        configuration_manager: of the training.
        label_manager: of the dataset.
        properties_dict: of the case, from a dataset of `names.data`.
        return_probabilities: also return them, (H, *S).
        num_threads_torch: has no effect.
    """
    del plans_manager, num_threads_torch
    logits = _logits(predicted_logits)
    labels = label_manager.labels
    configuration = Configuration.from_json(configuration_manager.configuration)
    inverse = InverseResampling(logits.shape[1:], _provenance(properties_dict), configuration)
    writer = ProbabilityArray(inverse, labels) if return_probabilities else None
    label_map = export_planes(_one_part(logits), inverse, labels, writer=writer)
    return label_map if writer is None else (label_map, writer.array)


def export_prediction_from_logits(
    predicted_array_or_file: Tensor | npt.NDArray[Any] | str | PathLike[str],
    properties_dict: Mapping[str, Any],
    configuration_manager: ConfigurationManager,
    plans_manager: PlansManager,
    dataset_json_dict_or_file: dict[str, Any] | str | PathLike[str],
    output_file_truncated: str | PathLike[str],
    save_probabilities: bool = False,
    num_threads_torch: int = 8,
) -> None:
    """Write the label map of logits (H, *S), on the grid of the case's image.

    Args:
        predicted_array_or_file: logits, or an `.npy` file of them.
        properties_dict: of the case, from a dataset of `names.data`.
        configuration_manager: of the training.
        plans_manager: of the training.
        dataset_json_dict_or_file: of the dataset.
        output_file_truncated: the file without its ending.
        save_probabilities: also write them, as `.npz`.
        num_threads_torch: has no effect.
    """
    del num_threads_torch
    logits = _logits(predicted_array_or_file)
    dataset_json = _document(dataset_json_dict_or_file)
    labels = plans_manager.get_label_manager(dataset_json).labels
    provenance = _provenance(properties_dict)
    configuration = Configuration.from_json(configuration_manager.configuration)
    inverse = InverseResampling(logits.shape[1:], provenance, configuration)
    target = Path(f"{output_file_truncated}{dataset_json['file_ending']}")
    case = Path(output_file_truncated).name
    probabilities = (
        ProbabilityFormat(kind="npz").open(target.parent, case, labels, inverse, {})
        if save_probabilities
        else nullcontext()
    )
    with probabilities as writer:
        label_map = export_planes(_one_part(logits), inverse, labels, writer=writer)
    save_labels(label_map, target, provenance, str(plans_manager.plans["image_reader_writer"]))


def resample_and_save(
    predicted: Tensor | npt.NDArray[Any] | str | PathLike[str],
    target_shape: Sequence[int],
    output_file: str | PathLike[str],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    properties_dict: Mapping[str, Any],
    dataset_json_dict_or_file: dict[str, Any] | str | PathLike[str],
    num_threads_torch: int = 8,
    dataset_class: Any = None,
) -> None:
    """Store the label map of logits (H, *S) on the grid of a cascade's next stage.

    Args:
        predicted: logits, or an `.npy` file of them.
        target_shape: of the next stage's case.
        output_file: file of the map, with or without an ending.
        plans_manager: of the training.
        configuration_manager: of the training.
        properties_dict: of the case, from a dataset of `names.data`.
        dataset_json_dict_or_file: of the dataset.
        num_threads_torch: has no effect.
        dataset_class: has no effect.
    """
    del num_threads_torch, dataset_class
    logits = _logits(predicted)
    configuration = Configuration.from_json(configuration_manager.configuration)
    labels = plans_manager.get_label_manager(_document(dataset_json_dict_or_file)).labels
    spacing = full_spacing(configuration, _provenance(properties_dict).spacing)
    function, kwargs = configuration.resampling_fn_probabilities, configuration.resampling_fn_probabilities_kwargs
    resampler = VolumeResampler(logits.shape[1:], target_shape, spacing, spacing, function, kwargs)
    label_map = labels.decide(resampler.slab(logits, 0, resampler.shape[0]).numpy(), logits=True)
    file = Path(output_file)
    name = file.name.removesuffix(".npz").removesuffix(".npy").removesuffix(".b2nd")
    StageMaps(file.parent).save(name, label_map, configuration.patch_size, UNKNOWN_WEIGHTS)


def compute_metrics_on_folder(
    folder_ref: str | PathLike[str],
    folder_pred: str | PathLike[str],
    output_file: str | PathLike[str] | None,
    image_reader_writer: ImageReaderWriter,
    file_ending: str,
    regions_or_labels: Sequence[int | Sequence[int]],
    ignore_label: int | None = None,
    num_processes: int = 8,
    chill: bool = True,
    *,
    references: References = None,
    label_map: Mapping[int, int] = NO_LABEL_MAP,
) -> dict[str, Any]:
    """Score the predictions of a folder, write nnU-Net's `summary.json`, and return it with labels as keys.

    Args:
        folder_ref: of the references.
        folder_pred: of the predictions.
        output_file: of the summary; None: it is not written.
        image_reader_writer: of the plan.
        file_ending: of the files.
        regions_or_labels: which are scored.
        ignore_label: voxels that do not count.
        num_processes: threads.
        chill: a reference without a prediction is no error.
        references: of the dataset, used if there is no `folder_ref`: we keep no copy of them.
        label_map: from values in files of references to labels, as the dataset declares it.

    Raises:
        DatasetError: there are no references or no predictions.
    """
    found = _reference_files(Path(folder_ref), references, file_ending)
    if isinstance(found, Path):
        pairs = pair_files(found, Path(folder_pred), file_ending, require_all=not chill)
    else:
        files = sorted(Path(folder_pred).glob(f"*{file_ending}"))
        pairs = [(found[file.name.removesuffix(file_ending)], file) for file in files]
    scores = evaluate_files(
        pairs,
        labels=_labels_of(regions_or_labels),
        reader=image_reader_writer.reader,
        workers=num_processes,
        ignore_label=ignore_label,
        label_map=label_map,
    )
    if output_file is not None:
        scores.save(Path(output_file))
    return _with_class_keys(scores.to_json())


def _reference_files(folder: Path, references: References, file_ending: str) -> Mapping[str, Path] | Path:
    if folder.is_dir():
        return folder
    if references is None or (isinstance(references, Path) and not references.is_dir()):
        raise DatasetError(
            f"{folder}: no such folder, and the labels of the raw dataset are not known; compare with labelsTr"
        )
    return references


def _labels_of(regions_or_labels: Sequence[int | Sequence[int]]) -> Labels:
    """Return labels that declare just these classes or regions."""
    keys: list[ClassKey] = [
        key if isinstance(key, int) else tuple(int(part) for part in key) for key in regions_or_labels
    ]
    declared: dict[str, ClassKey] = {BACKGROUND: 0, **{str(key): key for key in keys}}
    has_regions = any(isinstance(key, tuple) and len(key) > 1 for key in keys)
    return Labels(declared, tuple(range(1, len(keys) + 1)) if has_regions else None)


def labels_to_list_of_regions(labels: Sequence[int]) -> list[tuple[int]]:
    """Return each label as a region of its own."""
    return [(label,) for label in labels]


def load_summary_json(filename: str | PathLike[str]) -> dict[str, Any]:
    """Return a `summary.json` as `compute_metrics_on_folder` does."""
    return _with_class_keys(read_json(Path(filename)))


def _with_class_keys(document: dict[str, Any]) -> dict[str, Any]:
    """Return a summary with labels and regions as keys, not their texts."""
    cases = [
        {**case, "metrics": {class_key(key): value for key, value in case["metrics"].items()}}
        for case in document["metric_per_case"]
    ]
    means = {class_key(key): value for key, value in document["mean"].items()}
    return {**document, "metric_per_case": cases, "mean": means}


def _one_part(logits: Tensor) -> list[Planes]:
    return [Planes(start=0, stop=logits.shape[1], logits=logits)]


def _refuse(method: str) -> NoReturn:
    raise ConfigError(
        f"nnUNetPredictor.{method} is not offered within a training; predict with 'segwright predict --model FOLDER'"
    )


def _logits(predicted: Tensor | npt.NDArray[Any] | str | PathLike[str]) -> Tensor:
    if isinstance(predicted, str | PathLike):
        predicted = np.load(predicted)
    return torch.as_tensor(predicted).detach().float().cpu()


def _document(document: dict[str, Any] | str | PathLike[str]) -> dict[str, Any]:
    loaded: dict[str, Any] = document if isinstance(document, dict) else read_json(Path(document))
    return loaded


def _provenance(properties: Mapping[str, Any]) -> Provenance:
    if PROVENANCE not in properties:
        raise ConfigError(
            f"the properties of the case lack '{PROVENANCE}'; take them from load_case of nnUNetDataset or of the "
            "class that infer_dataset_class returns"
        )
    return provenance_of(properties)
