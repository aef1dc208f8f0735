"""Functions of nnU-Net's final validation, as copies of it call them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch

from segwright.compat.nnunet.modules import NnunetFolders, StandIns
from segwright.compat.nnunet.names.data import nnUNetDataset
from segwright.compat.nnunet.names.inference import (
    compute_gaussian,
    compute_metrics_on_folder,
    compute_steps_for_sliding_window,
    convert_predicted_logits_to_segmentation_with_correct_shape,
    export_prediction_from_logits,
    labels_to_list_of_regions,
    load_summary_json,
    nnUNetPredictor,
    resample_and_save,
)
from segwright.compat.nnunet.names.networks import get_network_from_plans
from segwright.compat.nnunet.names.plans import PlansManager
from segwright.core.errors import ConfigError, DatasetError
from segwright.data.plan import architecture_block
from segwright.data.preprocessed.previous_stage import StageMaps
from segwright.data.preprocessed.provenance import Provenance
from segwright.data.preprocessed.store import CaseStore
from segwright.inference.window.tiling import gaussian_map

SHAPE = (10, 8, 12)
DATASET: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "a": 1, "b": 2},
    "file_ending": ".nii.gz",
}
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
CONFIGURATION: dict[str, Any] = {
    "data_identifier": "tiny",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [8, 8, 8],
    "spacing": [1.0, 1.0, 1.0],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    **{f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg", "probabilities")},
    **{f"resampling_fn_{kind}_kwargs": RESAMPLING for kind in ("data", "seg", "probabilities")},
    "architecture": architecture_block(
        "PlainConvUNet",
        dims=3,
        features=(4, 4),
        kernel_sizes=((3, 3, 3),) * 2,
        strides=((1, 1, 1), (2, 2, 2)),
        encoder_blocks=(1, 1),
        decoder_convs=(1,),
    ),
    "batch_dice": False,
}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset001_Tiny",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {"3d": CONFIGURATION},
    "foreground_intensity_properties_per_channel": {},
}


@pytest.fixture
def manager() -> PlansManager:
    return PlansManager(PLANS)


@pytest.fixture
def dataset(tmp_path: Path) -> nnUNetDataset:
    """Return one case whose image is one plane larger than the preprocessed one."""
    provenance = Provenance(
        properties={
            "reader": "SimpleITKIO",
            "spacing": [1.0, 1.0, 1.0],
            "geometry": {"spacing": [1.0] * 3, "origin": [0.0] * 3, "direction": np.eye(3).ravel().tolist()},
        },
        shape_before_cropping=(11, 8, 12),
        box=((1, 11), (0, 8), (0, 12)),
        shape_after_cropping=SHAPE,
        spacing=(1.0, 1.0, 1.0),
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
    )
    image = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    label = np.zeros((1, *SHAPE), np.int16)
    label[0, 2:5, 2:5, 2:5] = 1
    store = CaseStore(tmp_path / "segwright_tiny")
    store.save("a", image, label, {1: np.argwhere(label[0])}, provenance, patch_size=(8, 8, 8), source_hash="x")
    return nnUNetDataset(tmp_path / "segwright_tiny")


def logits_of(label: Any) -> torch.Tensor:
    return torch.stack([torch.from_numpy(label[0] == value).float() for value in range(3)])


def read(file: Path) -> Any:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def test_gaussian_is_that_of_our_windows() -> None:
    ours = torch.from_numpy(gaussian_map((8, 6, 12)).copy())
    theirs = compute_gaussian((8, 6, 12), value_scaling_factor=10)
    assert theirs.dtype == torch.float16
    torch.testing.assert_close(theirs.float(), ours, rtol=1e-3, atol=1e-7)
    assert compute_gaussian((4, 4)).max() == 1


def test_steps_of_the_sliding_window() -> None:
    assert compute_steps_for_sliding_window((110, 200), (64, 128), 0.5) == [[0, 23, 46], [0, 36, 72]]


def test_case_is_predicted_exported_and_scored(manager: PlansManager, dataset: nnUNetDataset, tmp_path: Path) -> None:
    configuration = manager.get_configuration("3d")
    network = get_network_from_plans(manager, DATASET, configuration, 1, deep_supervision=False)
    predictor = nnUNetPredictor(tile_step_size=0.5, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(network, manager, configuration, None, DATASET, "nnUNetTrainer", (0, 1, 2))
    data, seg, properties = dataset.load_case("a")
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data))
    assert logits.shape == (3, *SHAPE)
    folder = tmp_path / "validation"
    folder.mkdir()
    arguments = (properties, configuration, manager, DATASET, str(folder / "a"))
    export_prediction_from_logits(logits_of(seg), *arguments, True)
    label = read(folder / "a.nii.gz")
    assert label.shape == (11, 8, 12)
    assert np.array_equal(label[1:], seg[0])
    probabilities = np.load(folder / "a.npz")["probabilities"]
    assert probabilities[:, 0, 0, 0].tolist() == [1, 0, 0]
    converted = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits_of(seg), manager, configuration, manager.get_label_manager(DATASET), properties, True
    )
    assert np.array_equal(converted[0], label)
    assert converted[1].shape == (3, 11, 8, 12)
    reader = manager.image_reader_writer_class()
    again = reader.read_seg(folder / "a.nii.gz")
    reader.write_seg(again[0][0].astype(np.uint8), tmp_path / "gt" / "a.nii.gz", again[1])
    scores = compute_metrics_on_folder(
        str(tmp_path / "gt"), str(folder), str(folder / "summary.json"), reader, ".nii.gz", [1, 2], None, chill=True
    )
    assert scores["mean"][1]["Dice"] == 1
    assert scores["metric_per_case"][0]["metrics"][1]["TP"] == 27
    assert load_summary_json(folder / "summary.json")["mean"][1]["Dice"] == 1


def test_weights_of_folds_are_averaged(manager: PlansManager, dataset: nnUNetDataset) -> None:
    configuration = manager.get_configuration("3d")
    network = get_network_from_plans(manager, DATASET, configuration, 1, deep_supervision=False)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False)
    predictor.manual_initialization(network, manager, configuration, [weights, zeros], DATASET, "nnUNetTrainer", None)
    data = torch.from_numpy(dataset.load_case("a")[0])
    mean = predictor.predict_logits_from_preprocessed_data(data)
    network.load_state_dict(weights)
    torch.testing.assert_close(2 * mean, predictor.predict_sliding_window_return_logits(data))


def test_map_for_the_next_stage_is_stored(manager: PlansManager, dataset: nnUNetDataset, tmp_path: Path) -> None:
    configuration = manager.get_configuration("3d")
    _, seg, properties = dataset.load_case("a")
    file = tmp_path / "predicted_next_stage" / "a.npz"
    resample_and_save(logits_of(seg), SHAPE, str(file), manager, configuration, properties, DATASET)
    assert np.array_equal(StageMaps(file.parent).load("a")[...], seg)


def test_properties_can_be_sent_to_another_process(dataset: nnUNetDataset) -> None:
    properties = dataset.load_case("a")[2]
    sent = pickle.loads(pickle.dumps(properties))
    assert np.array_equal(np.asarray(sent["class_locations"][1]), np.asarray(properties["class_locations"][1]))


def test_references_of_the_dataset_replace_a_folder_that_we_do_not_have(manager: PlansManager, tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "validation").mkdir()
    image = SimpleITK.GetImageFromArray(np.ones((4, 4, 4), np.uint8))
    for folder in ("labelsTr", "validation"):
        SimpleITK.WriteImage(image, str(tmp_path / folder / "a.nii.gz"))
    arguments = (str(tmp_path / "gt_segmentations"), str(tmp_path / "validation"), None)
    rest = (manager.image_reader_writer_class(), ".nii.gz", [(1, 2), 2])
    with pytest.raises(DatasetError, match="gt_segmentations: no such folder"):
        compute_metrics_on_folder(*arguments, *rest)
    for references in (tmp_path / "labelsTr", {"a": tmp_path / "labelsTr" / "a.nii.gz"}):
        with StandIns(folders=NnunetFolders(references=references)):
            from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder as bound

            assert bound(*arguments, *rest)["mean"][1, 2]["Dice"] == 1


def test_values_in_files_of_references_are_mapped_as_the_dataset_declares(
    manager: PlansManager, tmp_path: Path
) -> None:
    for folder, value in (("labelsTr", 255), ("validation", 2)):
        (tmp_path / folder).mkdir()
        image = SimpleITK.GetImageFromArray(np.full((4, 4, 4), value, np.uint8))
        SimpleITK.WriteImage(image, str(tmp_path / folder / "a.nii.gz"))
    folders = NnunetFolders(references=tmp_path / "labelsTr", label_map={255: 2})
    with StandIns(folders=folders):
        from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder as bound

        files = (str(tmp_path / "gt_segmentations"), str(tmp_path / "validation"), None)
        found = bound(*files, manager.image_reader_writer_class(), ".nii.gz", [1, 2])
    assert found["mean"][2]["Dice"] == 1


def test_label_files_of_the_dataset_are_read_through_its_map(tmp_path: Path) -> None:
    array = np.zeros((4, 4, 4), np.uint8)
    array[0], array[1], array[2] = 255, 1, 2
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / "a.nii.gz"))
    reader = PlansManager(PLANS, label_map={255: 2}).image_reader_writer_class()
    found, properties = reader.read_seg(tmp_path / "a.nii.gz")
    assert found[0, :, 0, 0].tolist() == [2, 1, 2, 0]
    reader.write_seg(found[0].astype(np.uint8), tmp_path / "b.nii.gz", properties)
    for each in (reader, PlansManager(PLANS).image_reader_writer_class()):
        assert np.array_equal(each.read_seg(tmp_path / "b.nii.gz")[0], found), "a prediction holds labels already"


def test_labels_are_regions_of_one() -> None:
    assert labels_to_list_of_regions([1, 2]) == [(1,), (2,)]


def test_what_is_not_offered_is_refused() -> None:
    with pytest.raises(ConfigError, match="use_gaussian=False"):
        nnUNetPredictor(use_gaussian=False)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="segwright predict"):
        predictor.predict_from_files([["x"]], None)
    with pytest.raises(ConfigError, match="segwright predict"):
        predictor.initialize_from_trained_model_folder("folder", (0,))


def test_properties_of_elsewhere_are_refused(manager: PlansManager) -> None:
    configuration = manager.get_configuration("3d")
    with pytest.raises(ConfigError, match="take them from load_case"):
        export_prediction_from_logits(torch.zeros(3, *SHAPE), {}, configuration, manager, DATASET, "a")
