"""Cases as they are read for an overlay: channel and window."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from segwright.core.errors import ConfigError
from segwright.data.description import DatasetDescription
from segwright.data.labels import Labels
from segwright.report.overlays.shown_case import CaseSource, ReadOptions, read_case


def options(channel: int | None = None, *names: str) -> ReadOptions:
    document = {
        "channel_names": {str(index): name for index, name in enumerate(names)},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    description = DatasetDescription.model_validate(document)
    labels = Labels.from_description(description)
    return ReadOptions(description=description, labels=labels, reader="SimpleITKIO", channel=channel)


def save(file: Path, array: npt.NDArray[np.int16]) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), file)
    return file


def test_only_the_file_of_the_channel_is_read(tmp_path: Path) -> None:
    image = save(tmp_path / "a_0001.nii.gz", np.full((3, 4, 5), 7, np.int16))
    source = CaseSource(identifier="a", images=(tmp_path / "missing.nii.gz", image))
    assert read_case(source, options(1, "T1", "T2")).image.tolist() == np.full((1, 5, 4, 3), 7.0).tolist()


def test_a_channel_that_a_file_lacks_is_refused(tmp_path: Path) -> None:
    image = save(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.int16))
    with pytest.raises(ConfigError, match=r"case a: has no channel 1; its 1 image file\(s\) hold 1"):
        read_case(CaseSource(identifier="a", images=(image,)), options(1, "T1", "T2"))


@pytest.mark.parametrize(("intensity", "window"), [(40, (-160.0, 240.0)), (-800, (-800.0, -800.0))])
def test_a_ct_has_the_window_of_soft_tissue_unless_labels_are_elsewhere(
    tmp_path: Path, intensity: int, window: tuple[float, float]
) -> None:
    image = np.full((3, 4, 5), -1000, np.int16)
    image[1:] = intensity
    labels = (image == intensity).astype(np.int16)
    source = CaseSource(
        identifier="a",
        images=(save(tmp_path / "a_0000.nii.gz", image),),
        labels=save(tmp_path / "a.nii.gz", labels),
    )
    assert read_case(source, options(None, "CT")).window == window
    assert read_case(CaseSource(identifier="a", images=source.images), options(None, "CT")).window == (-160.0, 240.0)
    assert read_case(source, options(None, "MR")).window == (-1000.0, float(intensity))
