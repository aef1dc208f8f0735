"""`convert` and `init` on the command line: previews, questions, JSON, exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from journeys import call, states
from typer.testing import CliRunner, Result

from segwright.cli.commands import datasets
from segwright.cli.main import app


@pytest.fixture
def mine(tiny: Path, tmp_path: Path) -> Path:
    """The tiny dataset in two folders with names of their own, without a description."""
    for file in (tiny / "imagesTr").iterdir():
        _copy(file, tmp_path / "mine" / "scans" / file.name.replace("_0000", ""))
    for file in (tiny / "labelsTr").iterdir():
        _copy(file, tmp_path / "mine" / "masks" / file.name.replace(".nii", "_mask.nii"))
    return tmp_path / "mine"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets, "_asks", lambda yes, as_json: not yes and not as_json)
    return


def answer(*arguments: object, answers: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=answers)


def test_init_then_check(mine: Path) -> None:
    done = call("init", mine, "--channel-names", "MRI", "--label-names", "background,organ,lesion")
    assert done.exit_code == 0, done.stderr
    assert "6 cases with .nii.gz files" in done.stdout
    assert "6 of 6" in done.stdout
    assert call("check", mine).exit_code == 0
    document = json.loads((mine / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "organ": 1, "lesion": 2}
    again = call("init", mine)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "dataset.json: exists; check it with 'segwright check', or overwrite it with --force" in again.stderr


def test_init_asks_on_a_terminal(mine: Path, terminal: None) -> None:
    done = answer("init", mine, answers="MRI\n\nlesion\ny\n")
    assert done.exit_code == 0, done.output
    document = json.loads((mine / "dataset.json").read_text())
    assert document["channel_names"] == {"0": "MRI"}
    assert document["labels"] == {"background": 0, "label_1": 1, "lesion": 2}


def test_a_name_that_check_refuses_is_not_written(mine: Path, terminal: None) -> None:
    done = answer("init", mine, answers="MRI\norgan\nignored\ny\n")
    assert done.exit_code == 1
    assert "'ignored' would be trained as a class" in done.stderr
    assert not (mine / "dataset.json").exists()


def test_no_is_an_answer(mine: Path, tmp_path: Path, terminal: None) -> None:
    before = states(tmp_path)
    assert answer("init", mine, answers="\n\n\nn\n").exit_code == 130
    done = answer("convert", "folders", mine, tmp_path / "Dataset001_New", answers="n\n")
    assert done.exit_code == 130
    assert states(tmp_path) == before


def test_init_in_json(mine: Path) -> None:
    done = call("init", mine, "--json")
    assert done.exit_code == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["dataset_json"] == json.loads((mine / "dataset.json").read_text())
    assert (printed["cases"], printed["test"]) == (6, [])
    assert printed["labels"][1] == {"name": "label_1", "value": 1, "stored": 1, "cases": 6}


def test_convert_shows_the_matching_before_anything_is_written(mine: Path, tmp_path: Path) -> None:
    new = tmp_path / "Dataset001_New"
    done = call("convert", "folders", mine, new, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "scans/phantom_001.nii.gz" in done.stdout
    assert "masks/phantom_001_mask.nii.gz" in done.stdout
    assert not new.exists()
    written = call("convert", "folders", mine, new)
    assert written.exit_code == 0, written.stderr
    assert "12 files written, 0 kept" in written.stdout
    assert call("check", new).exit_code == 0
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_convert_in_json(mine: Path, tmp_path: Path) -> None:
    done = call("convert", "folders", mine, tmp_path / "new", "--link", "--json")
    assert done.exit_code == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["written"], printed["kept"], len(printed["files"])) == (12, 0, 12)
    assert (tmp_path / "new" / "labelsTr" / "phantom_001.nii.gz").samefile(mine / "masks" / "phantom_001_mask.nii.gz")


CONVERSIONS = [("convert", kind) for kind in ("msd", "nnunet-v1", "folders", "nnunet")]


@pytest.mark.parametrize("verb", [("init",), *CONVERSIONS])
def test_an_empty_folder_is_an_error_of_the_user(tmp_path: Path, verb: tuple[str, ...]) -> None:
    (tmp_path / "empty").mkdir()
    more = (tmp_path / "new",) if verb[0] == "convert" else ()
    done = call(*verb, tmp_path / "empty", *more)
    assert (done.exit_code, done.stdout) == (1, "")
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    assert [*tmp_path.rglob("*")] == [tmp_path / "empty"]


def test_convert_writes_what_nnunet_reads(tiny: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(tiny, tmp_path / "Dataset007_Tiny"))
    document = json.loads((dataset / "dataset.json").read_text())
    document["labels"] = {"background": 0, "organ": 1}
    (dataset / "dataset.json").write_text(json.dumps({**document, "label_map": {"2": 1}}))
    before = states(dataset)
    done = call("convert", "nnunet", dataset, tmp_path / "Dataset008_Plain")
    assert done.exit_code == 0, done.stderr
    assert "changed: 2 -> 1 in 8 files" in done.stdout
    assert "Dataset008_Plain: 16 files written, 0 kept" in done.stdout
    written = json.loads((tmp_path / "Dataset008_Plain" / "dataset.json").read_text())
    assert "label_map" not in written
    assert call("check", tmp_path / "Dataset008_Plain").exit_code == 0
    assert states(dataset) == before


@pytest.mark.parametrize("kind", [kind for _, kind in CONVERSIONS])
def test_impossible_places_are_errors_of_the_user(mine: Path, tiny: Path, tmp_path: Path, kind: str) -> None:
    source = mine if kind == "folders" else Path(shutil.copytree(tiny, tmp_path / "Dataset007_Tiny"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "full" / "deep").mkdir(parents=True)
    (source / "table.csv").write_bytes(bytes(range(256)))
    before = states(tmp_path)
    places = [
        (source, source),
        (source, source / "new"),
        (source, tmp_path / "file"),
        (source, tmp_path / "file" / "new"),
        (source, tmp_path / ("n" * 300)),
        (source, tmp_path / "a\nb"),
        (tmp_path / "gone", tmp_path / "new"),
        (source / "table.csv", tmp_path / "new"),
        (tmp_path / "file", tmp_path / "new"),
    ]
    for old, new in places:
        done = call("convert", kind, old, new)
        assert done.exit_code == 1, (old, new, done.output, done.exception)
        assert [line for line in done.stderr.splitlines() if line.startswith("error: ")], (old, new)
        assert states(tmp_path) == before
