"""Install models from files and addresses, and use them by name; fine-tune from a checkpoint of nnssl."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from journeys import Journey, call, states

from segwright import api
from segwright.core.files import download
from segwright.data.images.image_io import read_images
from segwright.data.plan import Plan
from segwright.workspace import Workspace
from tests.file_server import FileServer, Served, file_server
from tests.nnssl_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def exported(journey: Journey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the run in a zip file of nnU-Net."""
    return api.export_model(journey.model, tmp_path_factory.mktemp("exported") / "Tiny v1.zip")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with file_server() as running:
        yield running


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def pack(file: Path, folder: Path, *, below: str = "") -> Path:
    """Write what prediction needs of the models in a folder to a zip file, without compression, which takes time."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted((folder / below).rglob("*")):
            if path.is_file() and "validation" not in path.parts and "_optimizer_" not in path.name:
                archive.write(path, path.relative_to(folder))
    return file


def labels(model: Path | str, journey: Journey, work: Path | None = None) -> np.ndarray:
    [file, *_] = sorted((journey.dataset / "imagesTs").iterdir())
    place = None if work is None else Workspace.under(work)
    predictor = api.load_model(model, device="cpu", precision="fp32", workspace=place)
    return predictor.predict(read_images([file], "SimpleITKIO").array[0], spacing=(1, 1, 1))


def test_a_model_of_nnunet_is_downloaded_converted_and_used_by_name(
    journey: Journey, exported: Path, server: FileServer, tmp_path: Path
) -> None:
    content = exported.read_bytes()
    server.files["/files/Tiny%20v1.zip"] = Served(content, cuts=[len(content) // 2, 0, 0, 0])
    work = ("--work", tmp_path / "work")
    command = (*work, "install", server.address("/files/Tiny%20v1.zip?download=1"), "--sha256", sha256(exported))
    stopped = call(*command)
    assert stopped.exit_code == 1
    assert "the same command continues the download" in stopped.stderr
    done = call(*command, "--json")
    assert done.exit_code == 0, done.stderr
    assert server.ranges[-1] == f"bytes={len(content) // 2}-"
    folder = tmp_path / "work" / "models" / "Tiny_v1"
    [model] = json.loads(done.stdout)["models"]
    assert (model["name"], model["kind"], model["is_new"]) == ("Tiny_v1", "nnunet", True)
    assert Path(model["folder"]) == folder
    assert [*folder.parent.iterdir()] == [folder]  # no download, no lock and no scratch folder is left
    assert not [*folder.rglob("*.pth")]
    np.testing.assert_array_equal(labels("Tiny_v1", journey, tmp_path / "work"), labels(journey.model, journey))
    before, asked = states(folder), len(server.ranges)
    again = call(*command)
    assert "already installed" in again.stdout
    assert (states(folder), len(server.ranges)) == (before, asked)
    predicted = call(
        *(*work, "predict", "-m", "Tiny_v1", "-i", journey.dataset / "imagesTs", "-o", tmp_path / "out"),
        *("--device", "cpu", "--no-mirroring"),
    )
    assert predicted.exit_code == 0, predicted.stderr
    unknown = call(*work, "predict", "-m", "Tiny", "-i", journey.dataset / "imagesTs", "-o", tmp_path / "out")
    assert unknown.exit_code == 1
    assert "model 'Tiny': no such folder or zip file, and none is installed as that; did you mean 'Tiny_v1'?" in (
        unknown.stderr
    )


def test_selected_models_and_several_models_of_one_file_are_installed(journey: Journey, tmp_path: Path) -> None:
    results = journey.model.parent
    selected = pack(tmp_path / "selected.zip", results, below="model")
    place = Workspace.under(tmp_path / "work")
    [model] = api.install(selected, name="best", workspace=place)
    assert (model.name, model.kind, model.folder) == ("best", "segwright", place.models / "best")
    np.testing.assert_array_equal(labels("best", journey, place.work), labels(results / "model", journey))
    pair = tmp_path / "pair"
    for name in ("Trainer__nnUNetPlans__3d_fullres", "Trainer__nnUNetPlans__3d_lowres"):
        shutil.copytree(journey.model, pair / "Dataset007_Tiny" / name)
    both = api.install(pack(tmp_path / "pair.zip", pair), workspace=place)
    assert [each.name for each in both] == ["pair-3d_fullres", "pair-3d_lowres"]
    np.testing.assert_array_equal(labels("pair-3d_lowres", journey, place.work), labels(journey.model, journey))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.write(journey.model / "plans.json", "model/plans.json")
    before = states(place.models)
    for arguments, message in (
        ((selected, "--name", "pair-3d_fullres"), "already exists, installed from"),
        ((tmp_path / "other.zip", "--name", "best", "--overwrite"), "other.zip: no model found"),
    ):
        refused = call("--work", place.work, "install", *arguments)
        assert refused.exit_code == 1
        assert message in refused.stderr, refused.stderr
        assert states(place.models) == before
    replaced = call("--work", place.work, "install", tmp_path / "pair.zip", "--name", "best", "--overwrite")
    assert replaced.exit_code == 0, replaced.stderr
    assert (place.models / "best" / "selection.json").is_file()  # the pair has names of its own
    assert (place.models / "best-3d_lowres").is_dir()


def truncated(file: Path, journey: Journey) -> None:
    pack(file, journey.model.parent, below=journey.model.name)
    file.write_bytes(file.read_bytes()[:-1000])


def bitten(file: Path, journey: Journey) -> None:
    model = file.parent / "model"
    shutil.copytree(journey.model, model / "m")
    (header,) = model.glob("m/fold_0/checkpoint_final.json")
    header.write_text(header.read_text().replace("3d_fullres", "3d_lowres"))
    pack(file, model)
    shutil.rmtree(model)


def climbing(file: Path, journey: Journey) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../evil/plans.json", "{}")


def page(file: Path, journey: Journey) -> None:
    file.write_text("<!DOCTYPE html><html>404</html>")


def text_archive(file: Path, journey: Journey) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "nothing")


def folder(file: Path, journey: Journey) -> None:
    shutil.copytree(journey.model, file)


REFUSED: dict[str, tuple[Callable[[Path, Journey], None], tuple[str, ...], str]] = {
    "cut off": (truncated, (), "not a readable zip file"),
    "damaged": (bitten, (), "its checksum does not match"),
    "leads out": (climbing, (), "leads out of the folder"),
    "web page": (page, (), "not a readable zip file"),
    "without a model": (text_archive, (), "no model found"),
    "another hash": (text_archive, ("--sha256", "0" * 64), f"expected {'0' * 64}"),
    "no hash": (text_archive, ("--sha256", "abc"), "expected 64 hexadecimal digits"),
    "bad name": (text_archive, ("--name", "../x"), "holds the path separator"),
    "folder": (folder, (), "is a folder, expected a file; a model folder can be used as it is"),
    "missing": (lambda file, journey: None, (), "no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model_is_refused_and_nothing_is_left(case: str, journey: Journey, tmp_path: Path) -> None:
    make, options, message = REFUSED[case]
    file = tmp_path / "here" / "model.zip"
    file.parent.mkdir()
    make(file, journey)
    before = states(tmp_path)
    refused = call("--work", tmp_path / "work", "install", file, *options)
    assert refused.exit_code == 1, (refused.output, refused.exception)
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert message in refused.stderr
    assert states(tmp_path) == before
    assert not [*tmp_path.glob("work/models/*")]


def test_addresses_that_hold_no_model_are_refused(server: FileServer, tmp_path: Path) -> None:
    server.files |= {
        "/page.zip": Served(b"<html>", kind="text/html"),
        "/text.zip": Served(b"PK but no zip file"),
        "/circle.zip": Served(status=302, location="/circle.zip"),
    }
    for address, message in (
        ("file:///etc/passwd", "only http:// and https:// addresses are downloaded"),
        (server.address("/page.zip"), "is a web page, not a file"),
        (server.address("/text.zip"), f"{server.address('/text.zip')}: not a readable zip file"),
        (server.address("/none.zip"), "no such file on the server"),
        (server.address("/circle.zip"), "without end"),
    ):
        refused = call("--work", tmp_path, "install", address)
        assert refused.exit_code == 1
        assert message in refused.stderr.splitlines()[-1], refused.stderr
        assert not [*tmp_path.rglob("*")], address


def test_a_checkpoint_of_nnssl_is_installed_planned_for_and_fine_tuned(
    journey: Journey, server: FileServer, tmp_path: Path
) -> None:
    features = tuple(2 * 2**stage for stage in range(6))
    write_checkpoint(tmp_path / "a.pth", features=features, blocks=(1,) * 6)
    server.files["/OpenMind.pth"] = Served((tmp_path / "a.pth").read_bytes())
    work = tmp_path / "work"
    shutil.copytree(journey.work / "preprocessed", work / "preprocessed")
    installed = call("--work", work, "install", server.address("/OpenMind.pth"))
    assert installed.exit_code == 0, installed.stderr
    assert "use it with: segwright train DATASET ... --pretrained OpenMind" in installed.stdout
    train = (
        *("--work", work, "train", journey.dataset, "--config", "3d_fullres", "--fold", "0", "--device", "cpu"),
        *("--pretrained", "OpenMind", "--epochs", "1", "--iterations", "1", "--set", "num_val_iterations_per_epoch=1"),
    )
    refused = call(*train)
    assert refused.exit_code == 1
    assert "its encoder is not that of this network" in refused.stderr
    assert "plan with 'segwright plan DATASET --like" in refused.stderr
    assert not (work / "results").exists() or not [*(work / "results").rglob("checkpoint*")]
    planned = call("--work", work, "plan", journey.dataset, "--like", "OpenMind")
    assert planned.exit_code == 0, planned.stderr
    file = work / "preprocessed" / journey.dataset.name / "nnsslResEncUNetLPlans.json"
    assert Plan.load(file).configuration("3d_fullres").patch_size == (128, 128, 128)
    document = json.loads(file.read_text())
    made = document["configurations"]["3d_fullres"]
    made["architecture"]["arch_kwargs"] |= {"features_per_stage": list(features), "n_blocks_per_stage": [1] * 6}
    made["patch_size"] = [64, 64, 64]
    file.write_text(json.dumps(document))
    trained = call(*train, "--plans", "nnsslResEncUNetLPlans")
    assert trained.exit_code == 0, trained.stderr
    assert "ResEncL of nnssl: encoder with" in trained.stderr
    assert "its authors ask to cite: Isensee et al. (2024)" in trained.stderr
