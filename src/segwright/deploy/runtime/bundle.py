"""The document of an ONNX bundle, `bundle.json`: all that prediction needs in addition to the networks.

bundle.json                 this document
MODEL/fold_k.onnx           the network of a fold: image (batch, channels, *patch) -> logits (batch, heads, *patch)
MODEL/previous_stage/...    the first stage of a cascade, in the same way
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from segwright.data.outliers import TrainingRange
from segwright.inference.export.postprocessing import PostProcessing
from segwright.inference.reliability.calibration import Calibration
from segwright.inference.reliability.expected_dice import DiceEstimator

BUNDLE_JSON: Final = "bundle.json"
INPUT, OUTPUT = "image", "logits"
"""Names of the input and the output of every network."""
MAX_DIFFERENCE: Final = 1e-3
"""Largest difference of a logit between onnxruntime and torch."""

_FACTOR, _MODULUS = 7919, 1009
"""Primes; of the image of the test vector."""
_NUM_POSITIONS = 64


class TestVector(BaseModel):
    """Some logits of a network for the image that `vector_image` returns.

    Attributes:
        positions: indices into the flattened logits (heads, *patch).
        logits: as torch computed them.
    """

    __test__ = False  # no test of pytest

    model_config = ConfigDict(frozen=True)

    positions: tuple[int, ...]
    logits: tuple[float, ...]

    @classmethod
    def of(cls, logits: npt.NDArray[np.float32]) -> TestVector:
        """Return the vector of the logits (1, heads, *patch) of a network for `vector_image`."""
        flat = logits.reshape(-1)
        positions = np.linspace(0, flat.size - 1, min(_NUM_POSITIONS, flat.size)).astype(int)
        return cls(positions=tuple(positions.tolist()), logits=tuple(flat[positions].tolist()))

    def difference(self, logits: npt.NDArray[np.float32]) -> float:
        """Return the largest difference of logits (1, heads, *patch) for `vector_image` from the expected ones."""
        found = logits.reshape(-1)[list(self.positions)]
        return float(np.abs(found - np.array(self.logits, dtype=np.float32)).max())


class BundledNetwork(BaseModel):
    """The network of one fold.

    Attributes:
        fold: its name, such as "0" or "all".
        file: of the network, from the bundle's folder.
        sha256: of the file.
        data_file: of weights above the 2 GiB of an ONNX file; None where `file` holds them.
        data_sha256: of that file.
        difference: largest difference of a logit between onnxruntime and torch, measured at the export.
        test_vector: by which a user of the bundle finds a wrong result.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    fold: str
    file: str
    sha256: str
    data_file: str | None = None
    data_sha256: str | None = None
    difference: float
    test_vector: TestVector


class BundledModel(BaseModel):
    """One model: an ensemble has several, a cascade has one in the other.

    Attributes:
        origin: name of the model folder, configuration, folds, checkpoint and hash.
        configuration: its name in `plan`.
        plan: the part of `plans.json` that prediction reads, with this configuration alone: spacing, patch, transpose,
            normalisation with its numbers, resampling functions with their orders.
        dataset: the part of `dataset.json` that prediction reads: labels or regions, their order, channel names.
        heads: name of each output of the network, in order.
        num_inputs: channels of the network's input; more than those of the image in the second stage of a cascade.
        mirror_axes: axes of the patch over whose flips predictions are averaged.
        swap_sides: whether left and right outputs are swapped in views mirrored along `plan.segwright.left_right.axes`.
        step: distance of two tiles as a fraction of the patch.
        training_range: of the training cases; others are flagged.
        networks: of the folds, whose logits are averaged.
        previous_stage: of a cascade, whose labels are further input channels, one for each foreground label.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    origin: Mapping[str, Any]
    configuration: str
    plan: Mapping[str, Any]
    dataset: Mapping[str, Any]
    heads: tuple[str, ...]
    num_inputs: int
    mirror_axes: tuple[int, ...]
    swap_sides: bool
    step: float
    training_range: TrainingRange | None = None
    networks: Annotated[tuple[BundledNetwork, ...], Field(min_length=1)]
    previous_stage: BundledModel | None = None


class Bundle(BaseModel):
    """`bundle.json`.

    Attributes:
        name: of the model.
        license: of the weights; None if it is not known.
        versions: of the programs that made it.
        models: whose probabilities are averaged; one, or the members of a selected model.
        postprocessing: is applied to label maps.
        dice_estimator: estimates the Dice of a case.
        calibration: the temperature of probabilities.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: Literal[1] = 1
    name: str
    license: str | None = None
    notice: str = "not a medical device"
    versions: Mapping[str, str] = {}
    models: Annotated[tuple[BundledModel, ...], Field(min_length=1)]
    postprocessing: PostProcessing
    dice_estimator: DiceEstimator | None = None
    calibration: Calibration | None = None


def vector_image(num_channels: int, patch_size: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the image (1, C, *P) of test vectors: value i of the flattened image is (7919 i mod 1009) / 504 - 1."""
    size = num_channels * prod(patch_size)
    values = np.arange(size, dtype=np.int64) * _FACTOR % _MODULUS
    image: npt.NDArray[np.float32] = (values.astype(np.float32) / 504 - 1).astype(np.float32)
    return image.reshape(1, num_channels, *patch_size)
