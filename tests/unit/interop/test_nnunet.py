from __future__ import annotations

import json
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segwright.core.errors import ModelError
from segwright.data.plan import Plan
from segwright.inference.models.model_folder import load_predictor
from segwright.interop.nnunet import header_of, import_model, is_nnunet_model, read_checkpoint

REFERENCE = Path(__file__).resolve().parents[4] / "shared" / "data" / "reference"
MODEL = REFERENCE / "nnUNetTrainerShort__nnUNetPlans__3d_fullres"


class Unknown:
    """Stands for whatever code a downloaded file might want to run."""


def test_what_is_not_weights_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "init_args": Unknown(), "trainer_name": "x"}, path)
    with pytest.raises(ModelError, match=r"refused.*Unknown"):
        read_checkpoint(path)


def test_logged_numpy_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "init_args": {}, "trainer_name": "x", "_best_ema": np.float64(0.5)}, path)
    assert read_checkpoint(path)["_best_ema"] == 0.5


def test_a_file_without_the_expected_keys_says_which(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {}}, path)
    with pytest.raises(ModelError, match="lacks init_args, trainer_name"):
        read_checkpoint(path)


def test_a_folder_without_folds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not an nnU-Net model"):
        import_model(tmp_path, tmp_path / "ours")


@pytest.mark.skipif(not MODEL.is_dir(), reason="the reference model is not here")
def test_the_reference_model_becomes_one_of_ours(tmp_path: Path) -> None:
    assert is_nnunet_model(MODEL)
    (fold,) = import_model(MODEL, tmp_path / "ours")
    header = json.loads((fold / "checkpoint_final.json").read_text())
    assert (header["configuration"], header["fold"], header["mirror_axes"]) == ("3d_fullres", 0, [0, 1, 2])
    predictor = load_predictor(tmp_path / "ours", device="cpu")
    logits = predictor.predict_preprocessed(np.zeros((1, 16, 16, 16), np.float32))
    assert logits.shape == (3, 16, 16, 16)


@pytest.mark.skipif(not MODEL.is_dir(), reason="the reference model is not here")
def test_plans_beside_a_model_of_nnunet_are_those_it_predicts_with(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "nnunet")
    foreign = json.loads((tmp_path / "nnunet" / "plans.json").read_text())
    foreign["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    (tmp_path / "nnunet" / "plans.json").write_text(json.dumps(foreign))
    import_model(tmp_path / "nnunet", tmp_path / "ours")
    assert load_predictor(tmp_path / "ours", device="cpu").configuration.spacing == (2.0, 2.0, 2.0)
    shutil.copy(MODEL / "plans.json", tmp_path / "ours" / "plans.json")
    with pytest.raises(ModelError, match="is not the plan that fold 0 was trained with"):
        load_predictor(tmp_path / "ours", device="cpu")


def saved(path: Path, **values: Any) -> Path:
    """A checkpoint with the keys that nnU-Net's have."""
    document = {
        "network_weights": {"w": torch.ones(2, 3)},
        "init_args": {"configuration": "3d_fullres", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        **values,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(document, path)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The same file with its records changed."""
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, change(name, data))
    return path


class Call:
    """Has a function called when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("name", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "bool"])
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numbers_of_numpy_1_and_2_are_read(tmp_path: Path, name: str, module: bytes) -> None:
    path = saved(tmp_path / "a.pth", _best_ema=np.dtype(name).type(1), big=np.dtype(name).newbyteorder(">").type(1))
    rewritten(path, lambda _, data: data.replace(b"numpy._core.multiarray", module))
    assert read_checkpoint(path)["_best_ema"] == 1
    assert read_checkpoint(path)["big"] == 1


@pytest.mark.parametrize(
    ("value", "name"), [(np.datetime64("2020-01-01"), "M8"), (np.complex64(1), "c8"), (np.str_("x"), "U1")]
)
def test_other_numpy_scalars_are_refused_by_name(tmp_path: Path, value: Any, name: str) -> None:
    with pytest.raises(ModelError, match=rf"refused.*numpy\.dtype '{name}'"):
        read_checkpoint(saved(tmp_path / "a.pth", value=value))


def test_plain_values_and_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    shared = torch.arange(24, dtype=torch.float16).reshape(2, 3, 4)
    weights = {
        "a": shared.permute(2, 0, 1),
        "b": shared[1],
        "c": torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
        "d": torch.tensor(3),
        "e": torch.empty(0, 2),
    }
    plain = {
        "x": [1, -1, 2**40, -(2**70), 1.5, "text", None, True, (), (1, 2, 3, 4)],
        "y": {1, 2},
        "z": b"",
        "b": b"\xff",
    }
    content = read_checkpoint(saved(tmp_path / "a.pth", network_weights=OrderedDict(weights), plain=plain))
    assert content["plain"] == plain
    for name, tensor in weights.items():
        assert torch.equal(content["network_weights"][name], tensor)
        assert content["network_weights"][name].dtype == tensor.dtype


def test_threads_read_at_once_and_torch_is_left_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", _best_ema=np.float64(0.5))
    before = torch.serialization.get_safe_globals()
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(lambda _: read_checkpoint(path)["_best_ema"], range(40))] == [0.5] * 40
    assert torch.serialization.get_safe_globals() == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": Call(bytearray, 10**12)}, r"refused.*bytearray"),
        ({"x": Call(eval, "1")}, r"refused.*eval"),
        ({"x": np.zeros(3)}, r"refused.*_reconstruct"),
        ({"network_weights": [1, 2]}, "network_weights is a list"),
        ({"network_weights": None}, "network_weights is a NoneType"),
        ({"network_weights": {"a": "b"}}, "'a', which is no tensor"),
        ({"network_weights": {"a": torch.zeros(1).expand(10**10)}}, "backed by 1 numbers only"),
        ({"network_weights": {"a": torch.full((3,), float("nan"))}}, "'a' has NaN or infinite weights"),
    ],
)
def test_a_hostile_content_is_refused_with_the_reason(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_checkpoint(saved(tmp_path / "a.pth", **values))


@pytest.mark.parametrize(
    "values",
    [
        {"inference_allowed_mirroring_axes": "abc"},
        {"inference_allowed_mirroring_axes": (None,)},
        {"inference_allowed_mirroring_axes": (0, 7)},
        {"current_epoch": "x"},
        {"trainer_name": ["x"]},
        {"init_args": None},
        {"init_args": {"configuration": ["x"], "fold": 0}},
        {"init_args": {"configuration": "3d_fullres", "fold": "../x"}},
    ],
)
@pytest.mark.skipif(not MODEL.is_dir(), reason="the reference model is not here")
def test_a_wrong_description_is_refused_with_the_key(tmp_path: Path, values: dict[str, Any]) -> None:
    plan = Plan.load(MODEL / "plans.json")
    content = {**read_checkpoint(saved(tmp_path / "a.pth")), **values}
    with pytest.raises(ModelError, match=f"a.pth: {next(iter(values))}"):
        header_of(content, plan, tmp_path / "a.pth")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x80\x02}." * 9, b"PK\x03\x04" * 20])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "pickled", [b"\x80\x02.", b"\x80\x02(", b"\x80\x02h\x05.", b"\x80\x02X\xff\xff\xff\x7f.", b"\x80\x02"]
)
def test_a_damaged_pickle_is_refused(tmp_path: Path, pickled: bytes) -> None:
    path = rewritten(saved(tmp_path / "a.pth"), lambda name, data: pickled if name.endswith("data.pkl") else data)
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)


def test_keys_that_hold_each_other_many_times_end_at_once(tmp_path: Path) -> None:
    laughs = b"\x80\x02}(K\x01\x85" + b"q\x00h\x00\x86" * 100 + b"K\x01u."
    path = rewritten(saved(tmp_path / "a.pth"), lambda name, data: laughs if name.endswith("data.pkl") else data)
    with pytest.raises(ModelError, match="keys must be texts or numbers"):
        read_checkpoint(path)


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", network_weights={"w": torch.zeros(100_000)})
    with pytest.raises(ModelError, match=r"refused.*is compressed"):
        read_checkpoint(rewritten(path, lambda _, data: data, zipfile.ZIP_DEFLATED))


def test_a_record_smaller_than_its_tensor_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth")
    with pytest.raises(ModelError, match="it needs 24 bytes, but its record has 8"):
        read_checkpoint(rewritten(path, lambda name, data: data[:8] if name.endswith("data/0") else data))


@pytest.mark.skipif(not MODEL.is_dir(), reason="the reference model is not here")
@pytest.mark.parametrize("weights", [{}, {"other": torch.ones(1)}])
def test_weights_of_another_network_are_not_converted(tmp_path: Path, weights: dict[str, Any]) -> None:
    for name in ("plans.json", "dataset.json"):
        (tmp_path / "model").mkdir(exist_ok=True)
        shutil.copy(MODEL / name, tmp_path / "model" / name)
    saved(tmp_path / "model" / "fold_0" / "checkpoint_final.pth", network_weights=weights)
    with pytest.raises(ModelError, match="do not fit the network"):
        import_model(tmp_path / "model", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
