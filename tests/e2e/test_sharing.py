"""Models are packed with a card, installed and shown; packs that were changed are refused or warned of."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from journeys import Journey, call

from segwright import api
from segwright.core.errors import ConfigError, ModelError
from segwright.core.files.hashing import file_hash
from segwright.core.files.json_documents import write_checked_json
from segwright.data.images.image_io import read_images
from segwright.deploy import hub
from segwright.workspace import Workspace

USE = "research on phantoms"
CARD = "model_card.json"


@pytest.fixture(scope="module")
def packed(journey: Journey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The selected model of the run as a pack."""
    file = tmp_path_factory.mktemp("packed") / "Phantom.zip"
    options = ("--license", "cc-by-nc-4.0", "--intended-use", USE, "--training-data", "made by a program")
    done = call("--work", journey.work, "pack", journey.dataset.name, "-o", file, *options)
    assert done.exit_code == 0, done.stderr
    assert f"segwright install Phantom.zip --sha256 {file_hash(file)}" in done.stdout
    return file


def labels(model: Path | str, journey: Journey, place: Workspace | None = None) -> np.ndarray:
    [file, *_] = sorted((journey.dataset / "imagesTs").iterdir())
    predictor = api.load_model(model, device="cpu", precision="fp32", workspace=place)
    return predictor.predict(read_images([file], "SimpleITKIO").array[0], spacing=(1, 1, 1))


def test_a_packed_model_is_installed_listed_and_shown_and_predicts_the_same(
    journey: Journey, packed: Path, tmp_path: Path
) -> None:
    place, selected = Workspace.under(tmp_path / "work"), journey.model.parent / "model"
    work = ("--work", place.work)
    done = call(*work, "install", packed, "--sha256", file_hash(packed))
    assert f"license of the weights: CC-BY-NC-4.0; intended use: {USE}" in done.stdout, done.stderr
    [model] = json.loads(call(*work, "models", "--json").stdout)["models"]
    assert (model["name"], model["kind"], model["license"]) == ("Phantom", "segwright", "CC-BY-NC-4.0")
    assert "CC-BY-NC-4.0" in call(*work, "models").stdout
    card = json.loads(call(*work, "info", "Phantom", "--json").stdout)
    assert card == api.model_info(packed).to_json()
    scores = json.loads((selected / "summary.json").read_text())
    assert card["num_scored"] == len(scores["metric_per_case"])
    assert card["scores"][0]["dice"] == pytest.approx(scores["foreground_mean"]["Dice"])
    assert (card["code_license"], card["training_data"]) == ("Apache-2.0", "made by a program")
    shown = call(*work, "info", "Phantom").stdout
    assert shown.strip() in (place.models / "Phantom" / "MODEL_CARD.md").read_text()
    np.testing.assert_array_equal(labels("Phantom", journey, place), labels(selected, journey))
    images = ("-i", journey.dataset / "imagesTs", "-o", tmp_path / "out", "--device", "cpu")
    predicted = call(*work, "predict", "-m", "Phantom", *images)
    assert f"model Phantom: license of the weights: CC-BY-NC-4.0; intended use: {USE}" in predicted.stderr


def test_a_pack_names_no_case(journey: Journey, tmp_path: Path) -> None:
    model = tmp_path / journey.model.name
    shutil.copytree(journey.model, model)
    cases = [file.name.removesuffix(".nii.gz") for file in (journey.dataset / "labelsTr").iterdir()]
    document = json.loads((model / "dataset.json").read_text())
    groups = {"groups": {case: f"patient of {case}" for case in cases}}
    (model / "dataset.json").write_text(json.dumps({**document, **groups}))
    card = api.pack(model, tmp_path / "folds.zip", license="MIT")
    with zipfile.ZipFile(tmp_path / "folds.zip") as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist() if not name.endswith("safetensors")}
    for name, text in texts.items():
        assert not [case for case in cases if case in text], name
        assert str(journey.work) not in text, name
    assert {f"{model.name}/{name}" for name in card.files} | {f"{model.name}/{CARD}"} >= texts.keys()
    [installed] = api.install(tmp_path / "folds.zip", workspace=Workspace.under(tmp_path / "work"))
    again = api.pack(installed.folder, tmp_path / "again.zip", license="MIT")
    assert (again.scores, again.members[0].model_hash) == (card.scores, card.members[0].model_hash)


def test_what_cannot_be_packed_is_refused(journey: Journey, tmp_path: Path) -> None:
    (tmp_path / "there.zip").touch()
    for target, options, message in (
        ("a.zip", ("--license", "CC-BY-5.0"), "license 'CC-BY-5.0': is not a known SPDX identifier"),
        ("a.zip", ("--license", "MIT", "--intended-use", " "), "intended_use: is empty"),
        ("a.zip", (), "--license"),
        ("a.tar", ("--license", "MIT"), "expected a name that ends with .zip"),
        ("there.zip", ("--license", "MIT"), "there.zip: exists already"),
    ):
        refused = call("pack", journey.model, "-o", tmp_path / target, *options)
        assert refused.exit_code == 1
        assert message in refused.stderr
    with pytest.raises(ModelError, match="nothing: no such model"):
        api.pack(tmp_path / "nothing", tmp_path / "a.zip", license="MIT")
    assert [*tmp_path.iterdir()] == [tmp_path / "there.zip"]


def with_card(root: Path, **changes: Any) -> None:
    """Change the card as somebody would who makes its checksum fit."""
    card = json.loads((root / CARD).read_text())
    write_checked_json(root / CARD, {key: value for key, value in {**card, **changes}.items() if value is not None})


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        [file] = root.rglob(name)
        text = file.read_bytes().decode("latin-1")
        assert old in text
        file.write_bytes(text.replace(old, new, 1).encode("latin-1"))

    return change


def flip(root: Path) -> None:
    [file, *_] = root.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (flip, "checkpoint_final.safetensors: its SHA-256 is not that in model_card.json"),
    "missing": (lambda root: (root / "postprocessing.json").unlink(), "postprocessing.json: is missing, but"),
    "added": (lambda root: (root / "code.py").touch(), "code.py: is not listed in model_card.json"),
    "license edited": (edit(CARD, "CC-BY-NC-4.0", "CC0-1.0"), "model_card.json: damaged (its checksum does not match)"),
    "no license": (lambda root: with_card(root, license=None), "license: Field required; a packed model needs a whole"),
    "empty license": (lambda root: with_card(root, license=""), "license: String should have at least 1 character"),
}
WARNED: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown license": (lambda root: with_card(root, license="free"), "license 'free' is no SPDX identifier that"),
    "card text": (edit("MODEL_CARD.md", USE, "everything"), "MODEL_CARD.md: was changed since the model was packed"),
    "of a system": (lambda root: (root / ".DS_Store").touch(), ""),
}


@pytest.mark.parametrize("case", [*REFUSED, *WARNED])
def test_a_changed_pack_is_refused_or_warned_of(case: str, packed: Path, tmp_path: Path) -> None:
    change, message = {**REFUSED, **WARNED}[case]
    shutil.unpack_archive(packed, tmp_path / "unpacked")
    change(tmp_path / "unpacked" / "Phantom")
    file = shutil.make_archive(str(tmp_path / "Changed"), "zip", tmp_path / "unpacked")
    done = call("--work", tmp_path / "work", "install", file)
    assert message in done.stderr
    assert done.exit_code == (case in REFUSED), done.stderr
    assert bool([*tmp_path.glob("work/models/*")]) is (case in WARNED)
    if case in REFUSED:
        with pytest.raises(ModelError):
            api.load_model(file, device="cpu")


def test_a_repository_of_the_hub_is_installed_at_its_commit(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, place = "c0ffee" * 6 + "c0de", Workspace.under(tmp_path / "work")
    snapshot = tmp_path / "cache" / commit
    asked = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        assert "*.py" not in allow_patterns
        if not snapshot.is_dir():
            raise OSError("offline")
        return str(snapshot)

    stub = SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", SimpleNamespace(HfHubHTTPError=ConnectionError))
    with pytest.raises(ModelError, match=r"hf:clinic/Phantom: cannot be downloaded \(offline\); check name"):
        api.install("hf:clinic/Phantom", workspace=place)
    shutil.unpack_archive(packed, snapshot)
    [model] = api.install("hf:clinic/Phantom@v1", workspace=place)
    assert asked[-1] == ("clinic/Phantom", "v1")
    assert (model.name, model.source) == ("Phantom", f"hf:clinic/Phantom@{commit}")
    assert not api.install("hf:clinic/Phantom@v1", workspace=place)[0].is_new
    assert (snapshot / "Phantom" / CARD).is_file()  # the cache is left alone
    shutil.rmtree(snapshot)
    snapshot.mkdir()
    shutil.copy(packed, snapshot / "Phantom.zip")
    done = call("--work", place.work, "install", "hf:clinic/Phantom", "--name", "again", "--sha256", file_hash(packed))
    assert done.exit_code == 0, done.stderr
    shutil.copy(packed, snapshot / "Two.zip")
    with pytest.raises(ModelError, match=r"has 2 zip files \(Phantom.zip, Two.zip\)"):
        api.install("hf:clinic/Phantom", workspace=place)


def test_a_missing_package_and_a_wrong_repository_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r'huggingface_hub is not installed; pip install "segwright\[hub\]"'):
        hub.download_from_hub("hf:clinic/Phantom")
    for source in ("hf:Phantom", "hf:a/b/c", "hf:clinic/Phantom@", "hf:../x@y z"):
        with pytest.raises(ConfigError, match="expected hf:ORG/NAME"):
            hub.download_from_hub(source)
