"""From array to labels as nnU-Net 2.8.1 does it: normalise, resample, tile, mirror, stitch, resample back, decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segwright.data.images.image_io import Volume
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.inference.predictor import Predictor
from segwright.networks.build import build_network
from segwright.networks.checkpoint import load_state

GOLDENS = sorted((Path(__file__).parents[2] / "golden" / "inference").glob("*.npz"))


def predictor_of(golden: Any, *, precision: str, sum_dtype: torch.dtype) -> Predictor:
    plan = Plan.from_json(json.loads(str(golden["plans"])))
    description = json.loads(str(golden["dataset"]))
    labels = Labels.from_dataset_json(description)
    configuration = plan.configuration("golden")
    network = build_network(
        configuration.architecture.model_dump(by_alias=True),
        len(description["channel_names"]),
        labels.num_heads,
        deep_supervision=False,
    )
    prefix = "weights/"
    load_state(
        network,
        {key.removeprefix(prefix): torch.from_numpy(golden[key]) for key in golden if key.startswith(prefix)},
    )
    return Predictor(
        [network],
        plan,
        configuration,
        labels,
        device=torch.device("cpu"),
        mirror_axes=range(configuration.dims),
        precision=precision,
        sum_dtype=sum_dtype,
    )


def predict(
    file: Path, *, precision: str, sum_dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return our probabilities, nnU-Net's, our labels, nnU-Net's."""
    with np.load(file) as golden:
        predictor = predictor_of(golden, precision=precision, sum_dtype=sum_dtype)
        volume = Volume(array=golden["image"], spacing=tuple(golden["spacing"].tolist()), properties={})
        probabilities, labels = golden["probabilities"].astype(np.float32), golden["segmentation"]
    prediction = predictor.predict_case(volume, probabilities=True)
    assert prediction.probabilities is not None
    return prediction.probabilities, probabilities, prediction.labels, labels


@pytest.mark.parametrize("file", GOLDENS, ids=lambda file: file.stem)
def test_with_its_rounding_everything_is_as_in_nnunet(file: Path) -> None:
    ours, theirs, labels, their_labels = predict(file, precision="fp32", sum_dtype=torch.float16)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert (labels == their_labels).mean() >= 0.999


@pytest.mark.parametrize("file", GOLDENS, ids=lambda file: file.stem)
@pytest.mark.parametrize(("precision", "tolerance", "same"), [("fp32", 5e-3, 0.999), ("bf16", 2e-2, 0.995)])
def test_float32_sums_give_what_nnunet_gives(file: Path, precision: str, tolerance: float, same: float) -> None:
    """At the border of the image too, where nnU-Net's float16 sums of tiny weights have one or two digits."""
    ours, theirs, labels, their_labels = predict(file, precision=precision, sum_dtype=torch.float32)
    different = np.abs(ours - theirs).max(axis=0) > tolerance
    # In bf16 a logit on the edge of two steps of those digits may fall to the other side.
    assert different.mean() <= (0 if precision == "fp32" else 5e-3), f"{different.sum()}, {np.abs(ours - theirs).max()}"
    assert (labels == their_labels).mean() >= same
