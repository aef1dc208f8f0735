"""Two grids: the same places, the same places along other axes, or other places."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import nibabel
import numpy as np
import pytest

from segwright.data.images.formats import Header
from segwright.data.images.geometry import Reorientation, find_reorientation, grid_problem

SHAPE = (4, 5, 6)  # z, y, x
AFFINE = nibabel.affines.from_matvec(np.diag([0.8, 0.9, 2.5]) @ np.eye(3)[:, [0, 1, 2]], [-12.5, 30, 7])
OBLIQUE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([0.8, 0.9, 2.5]), [-12.5, 30, 7]
)
EVERY_TURN = [(order, flips) for order in permutations(range(3)) for flips in product((1, -1), repeat=3)]


def header(affine: np.ndarray, shape: tuple[int, ...] = SHAPE, **geometry: Any) -> Header:
    spacing = tuple(float(extent) for extent in np.linalg.norm(affine[:3, :3], axis=0)[::-1])
    return Header(shape=shape, spacing=spacing, geometry=geometry or {"affine": affine.tolist()})


def itk_header(affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> Header:
    """Return what ITK's reader tells of the same grid."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    geometry = {
        "spacing": spacing.tolist(),
        "origin": lps[:3, 3].tolist(),
        "direction": (lps[:3, :3] / spacing).ravel().tolist(),
    }
    return header(affine, shape, **geometry)


@pytest.mark.parametrize("make", [header, itk_header])
@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize(("order", "flips"), EVERY_TURN)
def test_every_turn_of_storage_is_undone(
    make: Any, affine: np.ndarray, order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    array = np.arange(120, dtype=np.float32).reshape(SHAPE)
    change = np.array(list(zip(order, flips, strict=True)))
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine).as_reoriented(change)
    stored = np.asarray(image.dataobj).transpose(2, 1, 0)

    turn = find_reorientation(make(image.affine, stored.shape), make(affine))

    assert turn is not None
    np.testing.assert_array_equal(turn(stored[None])[0], array)
    assert turn.is_identity == (order == (0, 1, 2) and flips == (1, 1, 1))


@pytest.mark.parametrize(
    ("voxels", "is_same"), [(0.0, True), (1e-5, True), (0.09, True), (0.11, False), (0.5, False), (50.0, False)]
)
@pytest.mark.parametrize("axis", range(3))
def test_noise_is_less_than_a_tenth_of_a_voxel(axis: int, voxels: float, is_same: bool) -> None:
    shifted = OBLIQUE.copy()
    shifted[:3, 3] += voxels * OBLIQUE[:3, axis]

    assert (find_reorientation(header(shifted), header(OBLIQUE)) == Reorientation()) == is_same


@pytest.mark.parametrize(("extent", "is_same"), [(10, True), (1000, False)])
def test_what_adds_up_along_the_image_counts_at_its_end(extent: int, is_same: bool) -> None:
    stretched = AFFINE.copy()
    stretched[:3, 0] *= 1.0005
    shape = (4, 5, extent)

    assert (find_reorientation(header(stretched, shape), header(AFFINE, shape)) is not None) == is_same


def test_a_rotation_by_a_few_degrees_is_another_place() -> None:
    angle = np.deg2rad(5)
    rotated = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(angle)) @ AFFINE

    assert find_reorientation(header(rotated), header(AFFINE)) is None


def test_a_flip_without_its_origin_is_another_place() -> None:
    flipped = AFFINE @ np.diag([-1, 1, 1, 1])

    assert find_reorientation(header(flipped), header(AFFINE)) is None
    problem = grid_problem(header(flipped), header(AFFINE), file="b.nii", name="a.nii")
    assert problem.what.startswith("affine differs from that of a.nii, voxels of the same index are up to")


def test_slices_of_another_thickness_are_another_grid() -> None:
    one = Header(shape=(1, 5, 6), spacing=(3.0, 1.0, 1.0))

    assert find_reorientation(one, Header(shape=(1, 5, 6), spacing=(3.02, 1.0, 1.0))) == Reorientation()
    assert find_reorientation(one, Header(shape=(1, 5, 6), spacing=(3.1, 1.0, 1.0))) is None


def test_spacings_that_disagree_with_their_affines_are_compared_too() -> None:
    one = Header(shape=SHAPE, spacing=(2.5, 0.9, 0.8), geometry={"affine": AFFINE.tolist()})
    other = Header(shape=SHAPE, spacing=(1.0, 0.9, 0.8), geometry={"affine": AFFINE.tolist()})

    assert find_reorientation(one, other) is None
    assert "spacing (2.5, 0.9, 0.8) differs" in grid_problem(one, other, file="b", name="a").what


@pytest.mark.parametrize("broken", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 1.0, 0.0, 1.0])])
def test_a_header_without_a_place_equals_itself_alone(broken: np.ndarray) -> None:
    one = Header(shape=SHAPE, spacing=(1.0, 1.0, 1.0), geometry={"affine": broken.tolist()})
    other = Header(shape=SHAPE, spacing=(1.0, 1.0, 1.0), geometry={"affine": np.eye(4).tolist()})

    assert find_reorientation(one, one) == Reorientation()
    assert find_reorientation(one, other) is None
    assert find_reorientation(other, one) is None
    assert grid_problem(one, other, file="b", name="a").what


def test_flat_images_are_compared_in_their_plane() -> None:
    geometry = {"spacing": [0.5, 0.5], "origin": [1.0, 2.0], "direction": [1.0, 0.0, 0.0, 1.0]}
    flat = Header(shape=(1, 5, 6), spacing=(499.5, 0.5, 0.5), geometry=geometry)
    flipped = {**geometry, "origin": [1.0 + 5 * 0.5, 2.0], "direction": [-1.0, 0.0, 0.0, 1.0]}

    assert find_reorientation(flat, flat) == Reorientation()
    turn = find_reorientation(Header(shape=flat.shape, spacing=flat.spacing, geometry=flipped), flat)
    assert turn == Reorientation(order=(0, 1, 2), flipped=(False, False, True))
