"""The page of a report: complete in itself, small, equal to the summary, harmless, kind where something is gone."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from made_model import DATASET, EVIL, make_model, summary_of

from segwright import api
from segwright.core.errors import ModelError
from segwright.data.images.image_io import read_label
from segwright.evaluation.scores import Measures
from segwright.report import case_images
from segwright.workspace import Workspace

pytestmark = pytest.mark.slow

LIMIT = 15_000_000


class Page(HTMLParser):
    """What a browser would see: elements, the numbers of tables, the text of scripts by class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[tuple[str | None, str]] = []
        self.words: list[str] = []
        self._table: str | None = None
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        self._tag = tag
        if tag == "table":
            self._table = values.get("class")
        if tag == "tr" and self._table:
            self.tables.setdefault(self._table, []).append([])
        if tag == "data" and self._table:
            self.tables[self._table][-1].append(str(values["value"]))
        if tag == "script":
            self.scripts.append((values.get("class"), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._table = None
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._tag != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def text(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = api.write_report(model, tmp_path_factory.mktemp("out") / "report.html")
    assert file.stat().st_size < LIMIT
    return file.read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside(text: str) -> None:
    page = Page(text)
    without_voxels = re.sub(r'<script type="application/octet-stream".*?</script>|base64,[\w+/=]+', "", text)
    assert not re.search(r"https?:|[\"'(=\s]//|url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket", without_voxels)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert tag not in {"iframe", "object", "embed", "base", "form"}
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def row_of(item: Measures) -> list[float]:
    return [item.dice, item.iou, item.extra["Precision"], item.extra["Recall"], item.n_pred, item.n_ref]


def surfaces_of(item: Measures) -> list[float]:
    return [item.extra[name] for name in ("ASSD", "HD", "HD95", "NSD_1mm", "NSD_2mm")]


def test_its_numbers_are_those_of_the_summary(text: str, model: Path) -> None:
    page, summary = Page(text), summary_of(model)
    classes = [row for row in page.tables["scores"] if row]
    found = [[float(value) for value in row] for row in classes]
    wanted = [row_of(item) for item in summary.mean.values()]
    mean = summary.foreground_mean_present
    assert mean is not None
    assert found == [*wanted, row_of(mean)]
    surfaces = [[float(value) for value in row] for row in page.tables["surfaces"] if row]
    assert surfaces == [surfaces_of(item) for item in (*summary.mean.values(), mean)]
    cases = [[float(value) for value in row] for row in page.tables["sortable"] if row]
    by_case = [[case.mean_dice, *(item.dice for item in case.metrics.values())] for case in summary.metric_per_case]
    assert cases == sorted(by_case)


def test_the_voxels_of_the_worst_case_are_those_of_the_files(text: str, model: Path) -> None:
    page = Page(text)
    about = json.loads(next(body for kind, body in page.scripts if kind == "about"))
    worst = about["cases"][0]
    summary = summary_of(model)
    lowest = min(summary.metric_per_case, key=lambda case: case.mean_dice)
    assert worst["caption"].startswith(f"worst: {worst['name']} (")
    assert f"{worst['name']}.nii.gz" == lowest.case
    payload = next(body for kind, body in page.scripts if kind == "volume")
    arrays = np.frombuffer(zlib.decompress(b64decode(payload)), np.uint8).reshape(-1, *worst["shape"])
    assert len(arrays) == 3
    for array, file in zip(arrays[1:], (lowest.reference_file, lowest.prediction_file), strict=True):
        # The phantom's axes lead to the right and to the front; the viewer's to the left and to the back.
        turned = read_label(Path(file), "SimpleITKIO").array[0][:, ::-1, ::-1]
        np.testing.assert_array_equal(array, turned)
    differences = (arrays[1] != arrays[2]).sum(axis=(1, 2))
    assert differences[worst["start"][0]] == differences.max() > 0


def test_it_tells_reasons_curves_notes_and_hashes(text: str) -> None:
    words = " ".join(Page(text).words)
    for expected in ("target spacing", "the median of all cases", "training loss", "a note", "plan SHA-256", "abc",
                     "95", "median", "phantom_001", "Volume of the labels"):  # fmt: skip
        assert expected in words


def test_names_cannot_do_harm(tmp_path: Path) -> None:
    model = make_model(tmp_path, evil=True)
    page_text = api.write_report(model).read_text(encoding="utf-8")
    assert "<script>alert" not in page_text
    assert EVIL in " ".join(Page(page_text).words)
    page = Page(page_text)
    about = json.loads(next(body for kind, body in page.scripts if kind == "about"))
    assert EVIL in {label["name"] for label in about["labels"]}


def test_what_loses_most_is_said(text: str) -> None:
    words = " ".join(Page(text).words)
    assert "What loses most" in words
    assert re.search(r"(organ|lesion) loses most: 0\.\d+ Dice on average", words)
    assert "6 cases cannot show whether Dice depends on size" in words
    assert "middle third" in words
    assert "Contrast and thirds were measured" not in words  # in all cases


def test_without_raw_images_the_preprocessed_ones_are_shown(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    workspace = Workspace.under(tmp_path)
    api.preprocess(workspace.raw / DATASET, workspace=workspace, configurations=["3d_fullres"], workers=1)
    shutil.rmtree(workspace.raw)
    page = Page(api.write_report(tmp_path).read_text(encoding="utf-8"))
    about = json.loads(next(body for kind, body in page.scripts if kind == "about"))
    assert "preprocessed image" in about["cases"][0]["caption"]
    payload = next(body for kind, body in page.scripts if kind == "volume")
    arrays = np.frombuffer(zlib.decompress(b64decode(payload)), np.uint8).reshape(-1, *about["cases"][0]["shape"])
    counts = [np.bincount(array.ravel(), minlength=3)[1:] for array in arrays[1:]]
    assert all(count.min() > 0 for count in counts)
    assert (arrays[1] != arrays[2]).any()
    assert (tmp_path / "results" / DATASET).is_dir()
    assert not model.joinpath("report.html").exists()


def test_what_is_gone_is_said(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    shutil.rmtree(tmp_path / "raw")
    (model / "fold_0" / "metrics.jsonl").unlink()
    (model / "dataset_fingerprint.json").unlink()
    words = " ".join(Page(api.write_report(model).read_text(encoding="utf-8")).words)
    assert "Contrast and thirds were measured in 0 cases." in words
    assert "its image is missing" in words
    assert "this fold has no metrics.jsonl" in words
    assert "The model folder has no dataset_fingerprint.json" in words


def test_wait_for_batches_is_shown(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    page = Page(api.write_report(model).read_text(encoding="utf-8"))
    words = " ".join(page.words)
    assert "4 epochs, 12 steps, 6 s of training; a step waited 2.5 ms for its batch" in words
    assert "Wait of a step for its batch, ms" in words
    file = model / "fold_0" / "metrics.jsonl"
    file.write_text(file.read_text().replace("loader_wait_s", "something_else"))  # as older trainings
    older = " ".join(Page(api.write_report(model).read_text(encoding="utf-8")).words)
    assert "6 s of training" in older
    assert "its batch" not in older


def moved_model(folder: Path) -> Path:
    """Return a model that lies far from its dataset, as one from elsewhere does."""
    shutil.copytree(make_model(folder / "work"), folder / "elsewhere" / "model")
    shutil.rmtree(folder / "work" / "results")
    return folder / "elsewhere" / "model"


def test_what_scores_name_elsewhere_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, opened = moved_model(tmp_path), []
    whole = case_images.read_images
    monkeypatch.setattr(case_images, "read_images", lambda files, reader: opened.append(files) or whole(files, reader))
    page = Page(api.write_report(model).read_text(encoding="utf-8"))
    assert not opened
    assert "is neither in the model's folder nor in a given dataset" in " ".join(page.words)
    assert not [kind for kind, _ in page.scripts if kind == "volume"]
    given = Page(api.write_report(model, dataset=tmp_path / "work" / "raw" / DATASET).read_text(encoding="utf-8"))
    assert opened
    assert [kind for kind, _ in given.scripts if kind == "volume"]


def test_links_out_of_a_model_are_not_followed(tmp_path: Path) -> None:
    model = moved_model(tmp_path)
    raw = tmp_path / "work" / "raw" / DATASET
    for file in (model / "fold_0" / "validation").glob("*.nii.gz"):
        file.unlink()
        file.symlink_to(raw / "labelsTr" / file.name)
    page = Page(api.write_report(model, dataset=raw / "imagesTr").read_text(encoding="utf-8"))
    assert not [kind for kind, _ in page.scripts if kind == "volume"]
    assert "its prediction is not shown" in " ".join(page.words)


def test_without_pictures_no_voxel_is_in_the_page(model: Path, tmp_path: Path) -> None:
    page = Page(api.write_report(model, tmp_path / "r.html", pictures=False).read_text(encoding="utf-8"))
    assert not [kind for kind, _ in page.scripts if kind == "volume"]
    assert not [tag for tag, _ in page.elements if tag == "img"]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="contains no trained model; give a model folder"):
        api.write_report(tmp_path)


def test_predictions_beside_the_results_are_no_model(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "results" / DATASET / model.name)
    for name in ("plans.json", "dataset.json"):
        (tmp_path / "predictions").mkdir(exist_ok=True)
        shutil.copy(model / name, tmp_path / "predictions" / name)
    assert api.write_report(tmp_path, pictures=False) == tmp_path / "report.html"


def test_models_of_several_datasets_are_not_mixed(model: Path, tmp_path: Path) -> None:
    for name in ("Dataset001_A", "Dataset002_B"):
        shutil.copytree(model, tmp_path / "results" / name / model.name)
    with pytest.raises(ModelError, match="models of several datasets"):
        api.write_report(tmp_path)


def test_folds_are_scored_together_and_regions_keep_their_names(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    description = json.loads((model / "dataset.json").read_text())
    description |= {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    (model / "dataset.json").write_text(json.dumps(description))
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    del summary["checksum"]
    for entry in (summary["mean"], *(case["metrics"] for case in summary["metric_per_case"])):
        entry["(1, 2)"] = entry.pop("1")
    for fold in (0, 2):
        part = summary | {"metric_per_case": summary["metric_per_case"][fold : fold + 3]}
        validation = model / f"fold_{fold}" / "validation"
        validation.mkdir(parents=True, exist_ok=True)
        (validation / "summary.json").write_text(json.dumps(part))
    page = Page(api.write_report(model).read_text(encoding="utf-8"))
    assert "Held-out cases of folds 0, 2" in page.words
    dice = [case["metrics"]["2"]["Dice"] for fold in (0, 2) for case in summary["metric_per_case"][fold : fold + 3]]
    shown = {row[0] for row in page.tables["scores"] if row}
    assert str(float(np.mean(dice))) in shown
    assert {"whole", "core", "mean over classes"} <= set(page.words)
    about = json.loads(next(body for kind, body in page.scripts if kind == "about"))
    assert [label["name"] for label in about["labels"]] == ["label 1 of whole", "core"]


def test_a_flat_image_has_one_plane(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    validation = model / "fold_0" / "validation"
    for file in [*validation.glob("*.nii.gz"), *tmp_path.glob("raw/*/*/*.nii.gz")]:
        image = SimpleITK.ReadImage(str(file))
        SimpleITK.WriteImage(image[:, :, 6], str(file))
    page = Page(api.write_report(model).read_text(encoding="utf-8"))
    about = json.loads(next(body for kind, body in page.scripts if kind == "about"))
    assert about["cases"][0]["shape"][0] == 1
    assert about["cases"][0]["planes"] == ["axis 0", "axis 1", "axis 2"]
    assert "voxels" in page.words
