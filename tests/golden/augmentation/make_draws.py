"""Record what nnU-Net 2.8.1's default augmentation draws; run with the oracle's interpreter: `make_draws.py`.

Only the public `get_parameters` of its transforms is called. Written are, for each transform, how often it was applied
in `NUM_DRAWS` tries, and the parameters drawn, one array for each kind.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

NUM_DRAWS = 4000
PATCHES = {"3d": ((16, 16, 16), 30), "2d": ((16, 16), 180)}
MAX_KEPT = 2000


def angles(turned: np.ndarray) -> list[float]:
    """Return the angles about the axes of a rotation matrix Rz Ry Rx, or the plane's."""
    if len(turned) == 2:
        return [math.atan2(turned[1, 0], turned[0, 0])]
    return [
        math.atan2(turned[2, 1], turned[2, 2]),
        -math.asin(np.clip(turned[2, 0], -1, 1)),
        math.atan2(turned[1, 0], turned[0, 0]),
    ]


def record(dims: str, found: dict[str, list[float]], counts: dict[str, int]) -> None:
    patch, degrees = PATCHES[dims]
    limit = math.radians(degrees)
    axes = tuple(range(len(patch)))
    transforms = nnUNetTrainer.get_training_transforms(
        np.array(patch), (-limit, limit), None, axes, False, [False, False], False, (1, 2)
    ).transforms
    sample = {"image": torch.zeros(2, *patch), "segmentation": torch.zeros(1, *patch, dtype=torch.int16)}
    spatial, noise, blur, brightness, contrast, low_resolution, gamma_inverted, gamma, mirror = transforms[:9]
    for _ in range(NUM_DRAWS):
        affine = spatial.get_parameters(**sample)["affine"]
        if affine is not None:
            matrix = np.asarray(affine, dtype=np.float64)
            scale = abs(np.linalg.det(matrix)) ** (1 / len(patch))
            if abs(scale - 1) > 1e-9:
                found[f"{dims} scale"].append(scale)
            turned = matrix / scale
            if np.abs(turned - np.eye(len(patch))).max() > 1e-9:
                for axis, angle in enumerate(angles(turned)):
                    found[f"{dims} angle {axis}"].append(angle)
        flips = mirror.get_parameters(**sample)["axes"]
        for axis in axes:
            counts[f"{dims} mirror {axis}"] += axis in flips
        if dims == "2d":
            continue
        named = {
            "noise": (noise, "sigmas"),
            "brightness": (brightness, "multipliers"),
            "contrast": (contrast, "multipliers"),
            "gamma_inverted": (gamma_inverted, "gamma"),
            "gamma": (gamma, "gamma"),
        }
        for name, (transform, parameter) in named.items():
            values = transform.transform.get_parameters(**sample)[parameter]
            found[f"{name}"] += np.ravel(values).tolist()
        drawn = blur.transform.get_parameters(**sample)
        counts[f"blur on {int(drawn['apply_to_channel'].sum())} of 2 channels"] += 1
        found["blur"] += np.ravel(drawn["sigmas"]).tolist()
        drawn = low_resolution.transform.get_parameters(**sample)
        scales = np.asarray(drawn["scales"])
        counts[f"low_resolution on {len(drawn['apply_to_channel'])} of 2 channels"] += 1
        if len(drawn["apply_to_channel"]):
            found["low_resolution"] += scales[:, 0].tolist()
            counts["low_resolution unequal axes"] += int((scales != scales[:, :1]).any())
        others = {"blur": blur, "low_resolution": low_resolution}
        for name, transform in {**{name: each for name, (each, _) in named.items()}, **others}.items():
            counts[f"{name} applied"] += bool(transform.get_parameters(**sample)["apply_transform"])


def main() -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    found: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for dims in PATCHES:
        record(dims, found, counts)
    arrays = {name: np.array(values[:MAX_KEPT], dtype=np.float32) for name, values in found.items()}
    names = sorted(counts)
    np.savez_compressed(
        Path(__file__).with_name("draws.npz"),
        num_draws=NUM_DRAWS,
        count_names=np.array(names),
        counts=np.array([counts[name] for name in names]),
        **{f"value {name}": array for name, array in arrays.items()},
    )
    for name in names:
        print(name, counts[name])
    for name, array in arrays.items():
        print(name, len(array), array.min(), array.max())


if __name__ == "__main__":
    main()
