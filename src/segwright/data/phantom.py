"""Make a phantom dataset: noisy 3D images with a bias field and two touching structures, in nnU-Net's raw layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.json_documents import write_json
from segwright.core.seeds import generator

PHANTOM_SEED = 20240611
EDGE = 48
"""Largest edge length of an image in voxels; a patch then covers every image."""
EDGE_JITTER = 5
FILE_ENDING = ".nii.gz"
FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
LABELS = {"background": 0, "organ": 1, "lesion": 2}

_TISSUE, _ORGAN, _LESION, _VESSEL = 100.0, 150.0, 190.0, 160.0
_NOISE = 12.0
"""Standard deviation of the noise: a quarter of the contrast between organ and tissue."""
_BIAS = 0.15
"""Largest relative change of intensity by the bias field."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """One phantom: image (Z, Y, X) float32 and label map (Z, Y, X) uint8 on a grid of `spacing` mm."""

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8]
    spacing: tuple[float, float, float]


def make_phantom(index: int, *, seed: int = PHANTOM_SEED, edge: int = EDGE) -> Phantom:
    """Return phantom number `index`: a body with a large organ and a small lesion that touches it.

    A bright vessel crosses the body; it differs from the organ by its shape, not by its intensity.
    """
    rng = generator(seed, "phantom", index)
    jitter = min(EDGE_JITTER, edge // 8)
    shape = tuple(int(size) for size in rng.integers(edge - jitter, edge, size=3, endpoint=True))
    spacing = (1.0, 1.0, 1.0)
    axes = [np.arange(size) - (size - 1) / 2 for size in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij")) / (edge / 2)  # (3, Z, Y, X), about -1 to 1

    body = _ellipsoid(grid, np.zeros(3), rng.uniform(0.82, 0.95, size=3), np.eye(3)) < 1
    rotation = _rotation(rng)
    centre = rng.uniform(-0.15, 0.15, size=3)
    radii = rng.uniform(0.30, 0.46, size=3)
    organ = _ellipsoid(grid, centre, radii, rotation) < 1
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    lesion_radius = rng.uniform(0.22, 0.30)
    surface = centre + rotation @ (radii * direction)  # a point of the organ's surface
    lesion = _ellipsoid(grid, surface, np.full(3, lesion_radius), rotation) < 1
    vessel = _cylinder(grid, rng)

    label = np.zeros(shape, dtype=np.uint8)
    label[organ & body] = LABELS["organ"]
    label[lesion & body] = LABELS["lesion"]
    ideal = np.where(body, _TISSUE, 0.0)
    ideal[vessel & body] = _VESSEL
    ideal[label == LABELS["organ"]] = _ORGAN
    ideal[label == LABELS["lesion"]] = _LESION
    image = ideal * _bias_field(grid, rng) + rng.normal(scale=_NOISE, size=shape)
    return Phantom(image=image.astype(np.float32), label=label, spacing=spacing)


def write_dataset(
    folder: Path, *, num_training: int = 12, num_test: int = 4, seed: int = PHANTOM_SEED, edge: int = EDGE
) -> None:
    """Write a raw dataset: imagesTr, labelsTr, and for unseen cases imagesTs, labelsTs; dataset.json last.

    A folder with a dataset.json is complete and left unchanged.
    """
    if (folder / "dataset.json").is_file():
        return
    for index in range(num_training + num_test):
        part = "Tr" if index < num_training else "Ts"
        phantom = make_phantom(index, seed=seed, edge=edge)
        name = f"phantom_{index + 1:03d}"
        _write(phantom.image, folder / f"images{part}" / f"{name}_0000{FILE_ENDING}", phantom.spacing)
        _write(phantom.label, folder / f"labels{part}" / f"{name}{FILE_ENDING}", phantom.spacing)
    document = {
        "name": "Phantom",
        "description": "Synthetic: two touching structures in a noisy body with a bias field",
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": num_training,
        "file_ending": FILE_ENDING,
    }
    write_json(folder / "dataset.json", document, indent=4)


def _ellipsoid(grid: Floats, centre: Floats, radii: Floats, rotation: Floats) -> Floats:
    """Return the squared distance to `centre` in units of the radii; 1 on the surface."""
    local = np.tensordot(rotation.T, grid - centre[:, None, None, None], axes=1)
    squared: Floats = ((local / radii[:, None, None, None]) ** 2).sum(axis=0)
    return squared


def _cylinder(grid: Floats, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    offset = grid - rng.uniform(-0.6, 0.6, size=3)[:, None, None, None]
    along = np.tensordot(axis, offset, axes=1)
    distance_squared = (offset**2).sum(axis=0) - along**2
    return np.asarray(distance_squared < rng.uniform(0.05, 0.09) ** 2)


def _rotation(rng: np.random.Generator) -> Floats:
    """Return a random rotation (3, 3)."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return np.asarray(rotation * np.sign(np.linalg.det(rotation)))


def _bias_field(grid: Floats, rng: np.random.Generator) -> Floats:
    """Return a smooth factor around 1: a random polynomial of second order."""
    z, y, x = grid
    terms = np.stack([z, y, x, z * y, y * x, z * x, z**2, y**2, x**2])
    field = np.tensordot(rng.uniform(-1, 1, size=len(terms)), terms, axes=1)
    return np.asarray(1 + _BIAS * field / max(np.abs(field).max(), 1e-9))


def _write(array: npt.NDArray[np.float32] | npt.NDArray[np.uint8], path: Path, spacing: Sequence[float]) -> None:
    image = nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([*reversed(spacing), 1.0]))  # NIfTI stores x first
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
