"""Networks in ONNX bundles: equal to torch's, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segwright.core.errors import ModelError, WorkspaceError
from segwright.deploy.onnx_export import export_bundle
from segwright.deploy.runtime.bundle import BUNDLE_JSON, Bundle, vector_image
from segwright.inference.models.model_folder import load_predictor
from segwright.inference.predictor import Predictor

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Exporting(nn.Module):
    """Computes another thing while it is exported, as a network with a wrong fast path would."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift
        self.head = nn.Conv3d(1, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + (self.shift if torch.compiler.is_exporting() else 0)


class Branching(nn.Module):
    """Decides by values, which a graph cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x, x], dim=1) if float(x.sum()) > 0 else torch.cat([x, -x, x], dim=1)


@pytest.fixture
def predictor(make_model: Callable[..., Path]) -> Predictor:
    return load_predictor(make_model(0, 1), device="cpu", precision="fp32")


def test_every_fold_is_exported_with_what_prediction_needs(predictor: Predictor, tmp_path: Path) -> None:
    differences = export_bundle(predictor, tmp_path / "bundle", name="tiny", license_name="CC0-1.0")
    document = json.loads((tmp_path / "bundle" / BUNDLE_JSON).read_text())
    bundle = Bundle.model_validate(document)
    [model] = bundle.models
    assert [network.fold for network in model.networks] == ["0", "1"]
    assert {network.file for network in model.networks} == set(differences)
    assert (bundle.license, model.heads, model.step) == ("CC0-1.0", ("background", "inner", "outer"), 0.5)
    assert model.plan["configurations"]["3d_fullres"]["patch_size"] == [8, 8, 8]
    for network, of_torch in zip(model.networks, predictor.networks, strict=True):
        file = tmp_path / "bundle" / network.file
        assert str(Path(__file__).parents[3]).encode() not in file.read_bytes()
        session = onnxruntime.InferenceSession(str(file))
        images = np.concatenate([vector_image(1, (8, 8, 8))] * 3)
        [logits] = session.run(["logits"], {"image": images})
        with torch.no_grad():
            np.testing.assert_allclose(logits, of_torch(torch.from_numpy(images)).numpy(), atol=1e-4)
        assert network.test_vector.difference(logits[:1]) < 1e-4
        assert network.test_vector.difference(logits[:1] + 0.1) > 0.05


def test_other_logits_than_those_of_torch_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    predictor.networks = (Exporting(0.002).eval(),) * 2
    with pytest.raises(ModelError, match=r"other logits than torch, by up to 0\.002; at most 0\.001 is allowed"):
        export_bundle(predictor, tmp_path / "bundle.zip", name="tiny")
    assert [*tmp_path.glob("*bundle*")] == []
    predictor.networks = (Exporting(0.0005).eval(),) * 2
    export_bundle(predictor, tmp_path / "bundle.zip", name="tiny")
    with pytest.raises(WorkspaceError, match="already exists"):
        export_bundle(predictor, tmp_path / "bundle.zip", name="tiny")


def test_a_network_that_has_no_graph_is_refused_with_the_reason(predictor: Predictor, tmp_path: Path) -> None:
    predictor.networks = (Branching().eval(),) * 2
    with pytest.raises(ModelError, match=r"network Branching cannot be exported to ONNX: .*data-dependent"):
        export_bundle(predictor, tmp_path / "bundle", name="tiny")
    assert not (tmp_path / "bundle").exists()
