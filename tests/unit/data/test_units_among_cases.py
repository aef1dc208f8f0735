"""Images whose spacing is in another unit than that of the others are named by `check`."""

from __future__ import annotations

from pathlib import Path

import pytest
import SimpleITK as sitk  # noqa: N813

from segwright.data.checks import check
from segwright.data.phantom import write_dataset


@pytest.mark.parametrize(("factor", "named"), [(1000, True), (0.001, True), (5, False)])
def test_a_case_in_another_unit_is_named(tmp_path: Path, factor: float, named: bool) -> None:
    folder = tmp_path / "Dataset007_Tiny"
    write_dataset(folder, num_training=3, num_test=0, edge=12)
    for file in (folder / "imagesTr" / "phantom_002_0000.nii.gz", folder / "labelsTr" / "phantom_002.nii.gz"):
        image = sitk.ReadImage(str(file))
        image.SetSpacing([factor * each for each in image.GetSpacing()])
        sitk.WriteImage(image, str(file))
    found = check(folder)
    assert found.is_clean
    said = [str(warning) for warning in found.warnings if "voxels of" in str(warning)]
    assert len(said) == named
    assert all("phantom_002_0000" in line and "unit" in line for line in said)
