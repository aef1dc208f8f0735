"""Views of a volume: a voxel lands at the same side of the picture however its file is stored."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import numpy.typing as npt
import pytest

from segwright.core.errors import ConfigError
from segwright.report.overlays.views import require_plane, view_of

PAIRS = {"S": "SI", "I": "SI", "P": "PA", "A": "PA", "L": "LR", "R": "LR"}
STORED = ["".join(letters) for order in permutations(("SI", "PA", "LR")) for letters in product(*order)]
"""All 48 ways to store a volume, by the directions that its axes lead to."""

SHAPE = {"S": 5, "P": 6, "L": 7}
MARKED = {"S": 1, "P": 2, "L": 4}
"""A voxel: towards the feet, the front, and the left."""


def stored(directions: str) -> npt.NDArray[np.int16]:
    """Return a volume with the marked voxel, stored along these directions."""
    bodies = [PAIRS[letter][0] for letter in directions]
    volume = np.zeros([SHAPE[body] for body in bodies], dtype=np.int16)
    index = [
        MARKED[body] if letter == body else SHAPE[body] - 1 - MARKED[body]
        for letter, body in zip(directions, bodies, strict=True)
    ]
    volume[tuple(index)] = 9
    return volume


@pytest.mark.parametrize(
    ("plane", "shape", "expected", "letters"),
    [
        ("axial", (6, 7), (2, 4), "APRL"),  # towards the front: above; towards the left: on the right
        ("coronal", (5, 7), (3, 4), "SIRL"),  # towards the feet: below
        ("sagittal", (5, 6), (3, 2), "SIAP"),  # towards the front: on the left
    ],
)
@pytest.mark.parametrize("directions", STORED)
def test_a_voxel_keeps_its_side(
    directions: str, plane: str, shape: tuple[int, int], expected: tuple[int, int], letters: str
) -> None:
    volume = stored(directions)
    view = view_of(plane, shape=volume.shape, spacing=(1.0, 1.0, 1.0), directions=directions)
    index = int(np.argwhere(volume)[0][view.axis])
    picture = view.slice(volume[None], index)[0]
    assert (picture.shape, tuple(np.argwhere(picture)[0])) == (shape, expected)
    assert (view.name, view.letters) == (plane, letters)


def test_a_volume_of_unknown_orientation_is_drawn_as_stored() -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    view = view_of("auto", shape=volume.shape, spacing=(1.0, 1.0, 1.0), directions="")
    assert view.slice(volume, 1).tolist() == volume[1].tolist()
    assert (view.name, view.letters) == ("", "")
    with pytest.raises(ConfigError, match="coronal plane is unknown.*leave --plane out"):
        view_of("coronal", shape=volume.shape, spacing=(1.0, 1.0, 1.0), directions="")


@pytest.mark.parametrize(
    ("shape", "spacing", "directions", "plane", "axis"),
    [
        ((9, 9, 9), (1.0, 1.0, 1.0), "SPL", "axial", 0),
        ((9, 9, 9), (1.0, 4.0, 1.0), "SPL", "coronal", 1),
        ((9, 9, 9), (1.2, 1.0, 1.0), "LIP", "axial", 1),  # not much larger
        ((9, 9, 1), (3.0, 1.0, 1.0), "SPL", "sagittal", 2),  # a single slice, whatever the spacing
        ((9, 9, 9), (1.0, 1.0, 5.0), "", "", 2),
        ((1, 9, 9), (999.0, 1.0, 1.0), "", "", 0),
    ],
)
def test_slices_lie_across_the_axis_of_thick_slices(
    shape: tuple[int, ...], spacing: tuple[float, ...], directions: str, plane: str, axis: int
) -> None:
    view = view_of("auto", shape=shape, spacing=spacing, directions=directions)
    assert (view.name, view.axis) == (plane, axis)


def test_pictures_have_the_aspect_ratio_of_the_body() -> None:
    shape, spacing = (10, 200, 100), (8.0, 0.5, 0.5)  # 80 x 100 x 50 mm, axes to S, P, L
    sizes = {
        plane: view_of(plane, shape=shape, spacing=spacing, directions="SPL").size(shape, spacing, 200)
        for plane in ("axial", "coronal", "sagittal")
    }
    assert sizes == {"axial": (200, 100), "coronal": (200, 125), "sagittal": (160, 200)}


def test_an_unknown_plane_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'axil'; did you mean 'axial'"):
        require_plane("axil")
