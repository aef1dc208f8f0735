"""The prediction of one case, and the interface that a single model and an ensemble share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from segwright.data.images.image_io import Volume
from segwright.inference.arrays import to_volume, warn_if_out_of_distribution
from segwright.inference.export.labels import LabelMap
from segwright.inference.reliability.model import NO_RELIABILITY, ReliabilityModel
from segwright.inference.reliability.uncertainty import Uncertainty

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One case on its own grid, axes as the reader gave them.

    Attributes:
        labels: the label map (Z, Y, X).
        probabilities: of each head (H, Z, Y, X); None if they were not wanted.
        uncertainty: maps of entropy and disagreement; None if they were not wanted.
    """

    labels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]  # (Z, Y, X)
    probabilities: npt.NDArray[np.float32] | None  # (H, Z, Y, X)
    uncertainty: Uncertainty | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRecord:
    """The prediction of one case.

    Attributes:
        case: name of the case.
        output: file of its label map.
        read_s: seconds for reading and preprocessing.
        predict_s: seconds for the networks.
        export_s: seconds for labels and files.
        tiles: tiles of the sliding window.
        tiles_skipped: tiles of one value that needed no forward pass of their own.
        kept: an earlier run predicted the case.
        confidence: mean Dice over the classes that the model's own probabilities predict; None without foreground.
        expected_dice: estimate from held-out cases; None for a model without one.
        warnings: what is unusual about the image or the prediction.
    """

    case: str
    output: Path
    read_s: float = 0.0
    predict_s: float = 0.0
    export_s: float = 0.0
    tiles: int = 0
    tiles_skipped: int = 0
    kept: bool = False
    confidence: float | None = None
    expected_dice: float | None = None
    warnings: tuple[str, ...] = ()


class ArrayPredictor(ABC):
    """A model that predicts arrays and folders; subclasses predict one case."""

    reliability: ReliabilityModel = NO_RELIABILITY
    folder_function: Callable[..., list[CaseRecord]] | None = None
    """What `predict_files` calls: `folder.predict_folder.predict_files`, which imports this module."""
    dicom_function: Callable[..., Any] | None = None
    """What `predict_dicom` calls, of `segwright.deploy.dicom`."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What decides the labels: predictions of models with the same identity are interchangeable."""

    @property
    @abstractmethod
    def reader(self) -> str:
        """The plan's reader and writer of images."""

    @property
    @abstractmethod
    def num_channels(self) -> int:
        """Channels of an image, those of a previous stage not counted."""

    @abstractmethod
    def predict_case(self, volume: Volume, *, probabilities: bool = False, uncertainty: bool = False) -> Prediction:
        """Predict one case on its own grid: labels, and on request probabilities and uncertainty maps."""

    def predict_files(
        self, images: Path | str | Sequence[Path | str], output: Path | str, **options: Any
    ) -> list[CaseRecord]:
        """Predict a folder of images, or one case, into a folder; options as of `folder.predict_folder.predict_files`.

        Args:
            images: a folder, a file, or the files of the channels of one case.
            output: another folder.
            options: see there.
        """
        assert self.folder_function is not None, "segwright.load_model sets it"
        given = Path(images) if isinstance(images, Path | str) else [Path(each) for each in images]
        return self.folder_function(self, given, Path(output), **options)

    def predict_dicom(self, source: Path | str, output: Path | str | None = None, **options: Any) -> Any:
        """Predict a DICOM study; arguments and result as of `segwright.deploy.dicom.one_study.predict_dicom`.

        Args:
            source: folder, zip file or file of DICOM with one study.
            output: folder for the label map and DICOM objects; None: nothing is written.
            options: see there, e.g. `series=["4"]`, `output_types=["dicom-seg", "rtstruct"]`.
        """
        assert self.dicom_function is not None, "segwright.load_model sets it"
        return self.dicom_function(self, Path(source), None if output is None else Path(output), **options)

    def predict(
        self,
        array: npt.NDArray[Any] | Tensor,
        *,
        spacing: Sequence[float] | None = None,
        affine: npt.ArrayLike | None = None,
    ) -> LabelMap:
        """Return the label map of an array, on its grid and in its axis order; arguments as in `arrays.to_volume`.

        An out-of-distribution array is predicted, with a warning in the log.

        Raises:
            ImageError: the array does not fit the model, or holds NaN or infinite values.
        """
        return self._of_array(array, spacing, affine).labels

    def predict_probabilities(
        self,
        array: npt.NDArray[Any] | Tensor,
        *,
        spacing: Sequence[float] | None = None,
        affine: npt.ArrayLike | None = None,
    ) -> Prediction:
        """Return label map and probabilities (H, *S), an ensemble's mean, of an array, as `predict` does."""
        return self._of_array(array, spacing, affine, probabilities=True)

    def predict_uncertainty(
        self,
        array: npt.NDArray[Any] | Tensor,
        *,
        spacing: Sequence[float] | None = None,
        affine: npt.ArrayLike | None = None,
    ) -> Prediction:
        """Return label map and `uncertainty`, its maps from 0 to 1, of an array, as `predict` does."""
        return self._of_array(array, spacing, affine, uncertainty=True)

    def _of_array(
        self,
        array: npt.NDArray[Any] | Tensor,
        spacing: Sequence[float] | None,
        affine: npt.ArrayLike | None,
        **wanted: bool,
    ) -> Prediction:
        """Return what `predict_case` gives, on the array's grid; `wanted` are its options."""
        case = to_volume(array, num_channels=self.num_channels, reader=self.reader, spacing=spacing, affine=affine)
        warn_if_out_of_distribution(self.reliability, case)
        prediction = self.predict_case(case.volume, **wanted)
        probabilities, maps = prediction.probabilities, prediction.uncertainty
        return Prediction(
            labels=case.restore(prediction.labels),
            probabilities=None if probabilities is None else case.restore(probabilities),
            uncertainty=None if maps is None else Uncertainty(*(case.restore(each) for each in maps)),
        )
