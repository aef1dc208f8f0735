"""Export a model as an ONNX bundle, after comparing every network in torch and in onnxruntime."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from segwright.core.errors import ModelError, WorkspaceError
from segwright.core.extensions.extras import imports_of
from segwright.core.files.atomic_io import atomic_path, sweep_leftovers, temporary_folder
from segwright.core.files.hashing import file_hash
from segwright.core.files.json_documents import write_checked_json
from segwright.core.files.zip_files import write_zip
from segwright.data.description import DatasetDescription
from segwright.data.laterality import LEFT_RIGHT_KEY
from segwright.data.plan import Plan
from segwright.deploy.runtime.bundle import (
    BUNDLE_JSON,
    INPUT,
    MAX_DIFFERENCE,
    OUTPUT,
    Bundle,
    BundledModel,
    BundledNetwork,
    TestVector,
    vector_image,
)
from segwright.inference.cascade import STORED
from segwright.inference.case_predictor import CasePredictor
from segwright.inference.ensemble import Ensemble
from segwright.inference.predictor import Predictor

logger = logging.getLogger(__name__)

OPSET: Final = 18
MAX_FILE_BYTES: Final = 2_000_000_000
"""Of weights inside an ONNX file, which may have 2 GiB."""

_EXAMPLE_BATCH = 2
"""A batch of 1 would be taken for a constant (pytorch issue 148886)."""
_DATASET_KEYS: Final = (
    *("channel_names", "labels", "regions_class_order", "numTraining", "file_ending", "name", "licence", "license"),
    *("overwrite_image_reader_writer", "label_map", "label_pairs"),
)
_EXPORTER: Final = "torch.onnx"
"""Logger of torch's exporter, which warns of operators that no network here has."""

Floats = npt.NDArray[np.float32]


def export_bundle(
    model: Predictor | Ensemble, target: Path, *, name: str, license_name: str | None = None
) -> dict[str, float]:
    """Write an ONNX bundle; return the largest difference from torch of a logit of each network, by file.

    Args:
        model: on the CPU.
        target: the new folder, or a file `NAME.zip`.
        name: of the model.
        license_name: of the weights.

    Raises:
        ConfigError: packages of the extra `onnx` are missing.
        ModelError: a network cannot be exported, or onnxruntime computes other logits than torch.
        WorkspaceError: the target already exists.
    """
    if target.exists():
        raise WorkspaceError(f"{target}: already exists; choose a new path")
    with imports_of("onnx"):
        import onnx  # noqa: F401  all at once, before the work
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    members = [_in_torch(each) for each in (model.predictors if isinstance(model, Ensemble) else (model,))]
    for each in members:
        _require_exportable(each)
    is_zip = target.suffix == ".zip"
    folder = target.with_suffix(".folder") if is_zip else target
    sweep_leftovers(target.parent, {target.name, folder.name})
    with atomic_path(target) as temporary:
        if not is_zip:
            temporary.mkdir()
            return _write(temporary, model, members, name, license_name)
        with temporary_folder(folder) as scratch:
            differences = _write(scratch, model, members, name, license_name)
            write_zip(scratch, temporary, compress=False)  # weights hardly shrink
            return differences


def _write(
    folder: Path, model: Predictor | Ensemble, members: Sequence[Predictor], name: str, license_name: str | None
) -> dict[str, float]:
    """Write the networks and the document of a bundle."""
    names = [str(each.origin["model"]) for each in members]
    models = tuple(_write_model(each, folder, Path(each_name)) for each, each_name in zip(members, names, strict=True))
    bundle = Bundle(
        name=name,
        license=license_name,
        versions={package: version(package) for package in ("segwright", "torch", "onnx", "onnxscript", "onnxruntime")},
        models=models,
        postprocessing=model.postprocessing,
        dice_estimator=model.reliability.dice_estimator,
        calibration=model.reliability.calibration,
    )
    write_checked_json(folder / BUNDLE_JSON, bundle.model_dump(mode="json"))
    return {network.file: network.difference for each in models for network in _networks_of(each)}


def _networks_of(model: BundledModel) -> Iterator[BundledNetwork]:
    yield from model.networks
    if model.previous_stage is not None:
        yield from _networks_of(model.previous_stage)


def _require_exportable(predictor: Predictor) -> None:
    """Check that everything but the networks is of Segwright itself.

    Raises:
        ModelError: it needs code of the user.
    """
    if own := [name for name in predictor.configuration.normalization_schemes if ":" in name]:
        raise ModelError(
            f"{predictor.origin['model']}: normalisation '{own[0]}' is code of yours, which a bundle cannot hold; "
            "train with one of Segwright's schemes to export the model"
        )
    if predictor.first is not None:
        _require_exportable(_in_torch(predictor.first))


def _in_torch(predictor: CasePredictor) -> Predictor:
    assert isinstance(predictor, Predictor), "model folders are loaded with torch"
    return predictor


def _write_model(predictor: Predictor, folder: Path, place: Path) -> BundledModel:
    """Export the networks of one model to `folder / place` and return its entry."""
    first = _write_model(_in_torch(predictor.first), folder, place / STORED) if predictor.first is not None else None
    configuration, labels = predictor.configuration, predictor.labels
    num_inputs = configuration.num_input_channels(predictor.num_channels, len(labels.foreground_labels))
    (folder / place).mkdir(parents=True, exist_ok=True)
    image = vector_image(num_inputs, configuration.patch_size)
    networks = [
        _write_network(network, image, folder, place / f"fold_{fold}.onnx", str(fold))
        for network, fold in zip(predictor.networks, predictor.origin["folds"], strict=True)
    ]
    assert predictor.description is not None, "the model was loaded from files"
    return BundledModel(
        origin=predictor.origin,
        configuration=predictor.origin["configuration"],
        plan=_plan_of(predictor.plan, predictor.origin["configuration"]),
        dataset=_dataset_of(predictor.description),
        heads=tuple(labels.names.values()),
        num_inputs=num_inputs,
        mirror_axes=predictor.window.mirror_axes,
        swap_sides=bool(predictor.window.mirrored_heads),
        step=predictor.window.step,
        training_range=predictor.reliability.training,
        networks=tuple(networks),
        previous_stage=first,
    )


def _plan_of(plan: Plan, name: str) -> dict[str, Any]:
    """Return a plan with one configuration, its inherited values included, and without the reasons of decisions."""
    document = plan.to_json()
    configuration = plan.configuration(name).model_dump(mode="json", by_alias=True, exclude={"inherits_from"})
    sides = {key: value for key, value in plan.segwright.items() if key == LEFT_RIGHT_KEY}
    return {**document, "configurations": {name: configuration}, "segwright": sides}


def _dataset_of(description: DatasetDescription) -> dict[str, Any]:
    """Return the keys of dataset.json that prediction reads; lists of files and patients stay here."""
    return {key: value for key, value in description.raw().items() if key in (*_DATASET_KEYS, "modality")}


def _write_network(network: nn.Module, image: Floats, folder: Path, file: Path, fold: str) -> BundledNetwork:
    """Export one network, compare it with torch and return its entry.

    Args:
        network: on the CPU, in evaluation mode, with a single output.
        image: (1, C, *P).
        folder: of the bundle.
        file: of the network, from the bundle's folder.
        fold: its name.
    """
    path = folder / file
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    _export(network, image, path, has_data_file=num_bytes > MAX_FILE_BYTES)
    difference, logits = _compare(network, image, path)
    if not difference <= MAX_DIFFERENCE:  # nor NaN
        raise ModelError(
            f"{file}: onnxruntime computes other logits than torch, by up to {difference:.2g}; at most "
            f"{MAX_DIFFERENCE:g} is allowed, so the model is not exported"
        )
    logger.info("%s: logits differ from those of torch by at most %.2g", file, difference)
    data_path = path.with_name(f"{path.name}.data")
    has_data = data_path.is_file()
    return BundledNetwork(
        fold=fold,
        file=file.as_posix(),
        sha256=file_hash(path),
        data_file=file.with_name(data_path.name).as_posix() if has_data else None,
        data_sha256=file_hash(data_path) if has_data else None,
        difference=difference,
        test_vector=TestVector.of(logits),
    )


def _export(network: nn.Module, image: Floats, path: Path, *, has_data_file: bool) -> None:
    """Write a network as an ONNX file whose batch size is free.

    Raises:
        ModelError: the exporter does not support the network.
    """
    example = torch.from_numpy(np.repeat(image, _EXAMPLE_BATCH, axis=0))
    try:
        with torch.no_grad(), _quiet_exporter():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None, "a program is returned where no file is given"
            _remove_traces(program.model)
            program.save(path, external_data=has_data_file)
    except Exception as error:  # of many kinds, from the network and from several packages
        raise ModelError(
            f"{path.name}: network {type(network).__name__} cannot be exported to ONNX: {_reason(error)}"
        ) from error


def _remove_traces(model: Any) -> None:
    """Remove the source files and lines of each operator, which name folders of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()


def _reason(error: BaseException) -> str:
    """Return what the exporter found, from the last exception of the chain: its first one explains how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress what the exporter says about packages that are not installed and about its own code."""
    exporter = logging.getLogger(_EXPORTER)
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)


def _compare(network: nn.Module, image: Floats, path: Path) -> tuple[float, Floats]:
    """Return the largest difference of a logit between onnxruntime and torch, and torch's logits of `image`.

    Batches of one and of two patches are compared. Where float32 differs by too much, torch computes in float64: a
    large logit has a larger rounding error, in torch as in onnxruntime.

    Raises:
        ModelError: onnxruntime does not support the file, or gives logits of another shape.
    """
    import onnxruntime

    two = np.concatenate([image, 2 * np.flip(image, axis=-1)])
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = [session.run([OUTPUT], {INPUT: batch})[0] for batch in (image, two)]
    except Exception as error:  # onnxruntime's have no common class
        raise ModelError(f"{path.name}: onnxruntime cannot compute the network: {_reason(error)}") from error
    expected = [_logits(network, batch) for batch in (image, two)]
    shapes = [[each.shape for each in arrays] for arrays in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ModelError(f"{path.name}: onnxruntime gives logits of shapes {shapes[0]}, torch {shapes[1]}")
    difference = _largest_difference(found, expected)
    if not difference <= MAX_DIFFERENCE:
        exact = copy.deepcopy(network).double()
        try:
            difference = _largest_difference(
                found, [_logits(exact, batch.astype(np.float64)) for batch in (image, two)]
            )
        except RuntimeError:  # a network that computes in float32 whatever its weights
            logger.debug("%s: cannot compute in float64", path.name)
    return difference, expected[0]


def _largest_difference(found: list[Floats], expected: list[Floats]) -> float:
    return max(float(np.abs(each - other).max()) for each, other in zip(found, expected, strict=True))


def _logits(network: nn.Module, batch: npt.NDArray[Any]) -> Floats:
    with torch.no_grad():
        output = network(torch.from_numpy(batch))
    logits: Floats = (output[0] if isinstance(output, list | tuple) else output).numpy()
    return logits
