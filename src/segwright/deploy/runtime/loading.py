"""Open a bundle, a folder or a zip file, and check it before anything is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from segwright.core.errors import ModelError, SegwrightError
from segwright.core.extensions.extras import imports_of
from segwright.core.files.hashing import file_hash
from segwright.core.files.json_documents import parse_document
from segwright.core.files.names import below
from segwright.deploy.runtime.bundle import (
    BUNDLE_JSON,
    INPUT,
    MAX_DIFFERENCE,
    OUTPUT,
    Bundle,
    BundledModel,
    BundledNetwork,
    vector_image,
)
from segwright.deploy.runtime.predictor import CPU_PROVIDER, OnnxPredictor, open_session
from segwright.inference.ensemble import Ensemble
from segwright.inference.folder.predict_folder import predict_files
from segwright.interop.archive import extract

logger = getLogger(__name__)


def load_bundle(
    bundle: Path | str,
    *,
    mirroring: bool = True,
    provider: str = CPU_PROVIDER,
    threads: int | None = None,
    exact: bool = False,
) -> OnnxPredictor | Ensemble:
    """Load a bundle for many predictions in one process; the result is used as that of `segwright.load_model`.

    Args:
        bundle: folder or zip file that `export-model --format onnx` wrote.
        mirroring: average over mirrored views, if the bundle has them.
        provider: onnxruntime's name of what computes the networks.
        threads: on the CPU; all available ones by default.
        exact: also run the network on constant tiles such as air, which are otherwise computed once.

    Raises:
        SegwrightError: a file is missing or damaged.
    """
    with imports_of("onnx"):
        import onnxruntime  # noqa: F401  before files are read
    with _unpacked(Path(bundle)) as folder:
        document = read_bundle(folder)
        members = [
            _load_model(model, folder, mirroring=mirroring, provider=provider, threads=threads, reuse=not exact)
            for model in document.models
        ]
    model: OnnxPredictor | Ensemble = members[0] if len(members) == 1 else Ensemble(members)
    model.postprocessing = document.postprocessing
    model.reliability = replace(
        model.reliability, dice_estimator=document.dice_estimator, calibration=document.calibration
    )
    model.folder_function = predict_files
    return model


def read_bundle(folder: Path) -> Bundle:
    """Read the document of an unpacked bundle.

    Raises:
        SegwrightError: it is missing or damaged.
    """
    file = folder / BUNDLE_JSON
    if not file.is_file():
        raise ModelError(f"{folder}: no bundle; expected {BUNDLE_JSON} in it, as export-model --format onnx writes it")
    return parse_document(Bundle, file)


def check_bundle(bundle: Path | str) -> dict[str, float]:
    """Compute the test vector of every network; return the largest difference from the logits of torch, by file.

    Raises:
        SegwrightError: a file is missing or damaged, or a difference is above `MAX_DIFFERENCE`.
    """
    differences = {}
    with _unpacked(Path(bundle)) as folder:
        for model in _all_models(read_bundle(folder)):
            patch_size = model.plan["configurations"][model.configuration]["patch_size"]
            image = vector_image(model.num_inputs, patch_size)
            for network in model.networks:
                [logits] = _open(network, folder).run([OUTPUT], {INPUT: image})
                difference = network.test_vector.difference(np.asarray(logits))
                if not difference <= MAX_DIFFERENCE:  # nor NaN
                    raise ModelError(
                        f"{network.file}: logits of the test vector differ by {difference:.2g} from those of torch; at "
                        f"most {MAX_DIFFERENCE:g} is allowed: use another version of onnxruntime, or export again"
                    )
                differences[network.file] = difference
    return differences


def _all_models(bundle: Bundle) -> Iterator[BundledModel]:
    for model in bundle.models:
        stage: BundledModel | None = model
        while stage is not None:
            yield stage
            stage = stage.previous_stage


@contextmanager
def _unpacked(bundle: Path) -> Iterator[Path]:
    """Yield a folder as it is, or a zip file unpacked into a temporary folder; errors name the zip file."""
    if not bundle.is_file():
        yield bundle
        return
    with TemporaryDirectory(prefix="segwright-bundle-") as scratch:
        folder = Path(scratch) / bundle.name
        try:
            extract(bundle, folder)
            yield folder
        except SegwrightError as error:
            error.args = (str(error).replace(str(folder), str(bundle)),)
            raise


def _load_model(model: BundledModel, folder: Path, *, mirroring: bool, reuse: bool, **options: Any) -> OnnxPredictor:
    """Load the networks of one model; `options` are those of `open_session`."""
    first = None
    if model.previous_stage is not None:
        first = _load_model(model.previous_stage, folder, mirroring=mirroring, reuse=reuse, **options)
    used = model if mirroring else model.model_copy(update={"mirror_axes": ()})
    sessions = [_open(network, folder, **options) for network in model.networks]
    predictor = OnnxPredictor(
        sessions,
        used,
        where=folder / BUNDLE_JSON,
        provider=options.get("provider", CPU_PROVIDER),
        reuse=reuse,
        first=first,
    )
    predictor.folder_function = predict_files
    return predictor


def _open(network: BundledNetwork, folder: Path, **options: Any) -> Any:
    """Open a network after comparing its files with their hashes.

    Raises:
        ModelError: a file is missing or damaged.
    """
    for name, sha256 in ((network.file, network.sha256), (network.data_file, network.data_sha256)):
        if name is None:
            continue
        path = below(folder, *Path(name).parts)
        if not path.is_file():
            raise ModelError(f"{path}: no such file, but {BUNDLE_JSON} names it; copy the bundle again")
        if file_hash(path) != sha256:
            raise ModelError(f"{path}: damaged (its SHA-256 is not that in {BUNDLE_JSON}); copy the bundle again")
    return open_session(below(folder, *Path(network.file).parts), **options)
