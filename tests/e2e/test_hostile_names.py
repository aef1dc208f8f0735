"""Malicious case ids and names are refused by every verb that reads them from files, listings or options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from journeys import call
from traps import CONFIGURATION, World, edit, every_verb

IDS = ("../victim", "../../../victim", "{root}/victim", "..", "a/b", "a\0b", "a\nerror: b", "a\x1b[31m", "x" * 300, "")
FAST = ("--config", CONFIGURATION, "--device", "cpu")


def refuse(world: World, name: str, *arguments: object, may_pass: bool = False) -> None:
    """Check that a call ends with an error message and changes nothing outside."""
    before = world.tree(world.out, world.work)
    result = call(*arguments)
    assert result.exit_code in ((0, 1) if may_pass else (1,)), (arguments, name, result.output, result.exception)
    assert world.tree(world.out, world.work) == before, (arguments, name)
    assert not any(ord(letter) < 32 for line in result.output.splitlines() for letter in line), result.output
    assert not any(line.startswith("error: b") for line in result.output.splitlines())


def list_case(world: World, name: str) -> None:
    images = sorted((world.data / "imagesTr").glob("*_0000.nii.gz"))
    lists = {
        each.name.removesuffix("_0000.nii.gz"): {
            "images": [f"imagesTr/{each.name}"],
            "label": f"labelsTr/{each.name.replace('_0000', '')}",
        }
        for each in images
    }
    lists[name] = lists.pop(next(iter(lists)))
    edit(world.data / "dataset.json", lambda document: document.update(dataset=lists))


def split_case(world: World, name: str) -> None:
    cases = [f"phantom_{number:03d}" for number in range(1, 7)]
    folds = [{"train": [*cases[1:], name], "val": [cases[0]]}] * 5
    for folder in (world.data, world.work / "preprocessed" / world.data.name):
        (folder / "splits_final.json").write_text(json.dumps(folds))
    shutil.rmtree(world.work / "results")


def name_label(world: World, name: str) -> None:
    edit(world.data / "dataset.json", lambda document: document.update(labels={"background": 0, name: 1, "lesion": 2}))
    edit(world.model / "dataset.json", lambda document: document.update(labels={"background": 0, name: 1, "lesion": 2}))


def name_data(world: World, name: str) -> None:
    plans = world.work / "preprocessed" / world.data.name / "nnUNetPlans.json"
    edit(plans, lambda document: document["configurations"][CONFIGURATION].update(data_identifier=name))


DOCUMENTS: dict[str, tuple[Callable[[World, str], None], tuple[str, ...]]] = {
    "case ids that a dataset lists": (list_case, ("check", "fingerprint", "plan", "preprocess", "train", "run")),
    "case ids of splits": (split_case, ("train", "run")),
    "data identifiers of plans": (name_data, ("preprocess", "train", "run", "preview-augmentation")),
}


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("name", IDS)
def test_a_name_in_a_document_is_refused(world: World, document: str, name: str) -> None:
    change, verbs = DOCUMENTS[document]
    change(world, name.format(root=world.root))
    known = every_verb(world)
    for verb in verbs:
        arguments = tuple(each for each in known[verb] if each != "--resume")
        refuse(world, name, *arguments)


@pytest.mark.parametrize("name", IDS)
def test_names_of_labels_stay_in_the_folder_of_results(world: World, name: str) -> None:
    name_label(world, name.format(root=world.root))
    known = every_verb(world)
    maps = ("--probabilities", "nifti")
    for arguments in (known["check"], known["evaluate"], (*known["predict"][:-2], *maps), known["report"]):
        refuse(world, name, *arguments, may_pass=True)


@pytest.mark.parametrize("name", IDS)
def test_files_that_scores_name_are_only_read(world: World, name: str) -> None:
    hostile = name.format(root=world.root)

    def change(document: dict[str, Any]) -> None:
        for case in document["metric_per_case"]:
            case.update(prediction_file=hostile, reference_file=hostile)

    for summary in (*world.model.glob("fold_*/validation/summary.json"), *world.fold.glob("validation/summary.json")):
        edit(summary, change)
    known = every_verb(world)
    for verb in ("report", "accumulate-crossval", "select", "status", "run"):
        refuse(world, name, *known[verb], may_pass=True)
    scores = world.model / "fold_0" / "validation" / "summary.json"
    refuse(world, name, "compare", scores, scores, may_pass=True)
    refuse(world, name, "show", "scores", world.model, may_pass=True)


@pytest.mark.parametrize("name", ["a\nerror: b", "a\x1b[31m", "a\x7f"])
def test_files_with_hostile_names_are_refused_or_named_plainly(world: World, name: str) -> None:
    known = every_verb(world)
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz"), ("imagesTs", "_0000.nii.gz")):
        source = next((world.data / folder).glob(f"*{ending}"))
        shutil.copy(source, world.data / folder / f"{name}{ending}")
    held_out = world.model / "fold_0" / "validation"
    shutil.copy(next(held_out.glob("*.nii.gz")), held_out / f"{name}.nii.gz")
    for verb in ("check", "run", "predict", "report"):
        refuse(world, name, *known[verb], may_pass=True)
    for verb in ("evaluate", "determine-postprocessing", "apply-postprocessing"):
        refuse(world, name, *known[verb], may_pass=True)
    written = [path.name for path in (*world.out.rglob("*"), *world.work.rglob("*"))]
    assert not any(name in each for each in written), written


@pytest.mark.parametrize("name", [each for each in IDS if each and "\0" not in each])
def test_names_on_the_command_line_are_refused(world: World, name: str) -> None:
    hostile, work = name.format(root=world.root), ("--work", world.work)
    scores = world.model / "fold_0" / "validation" / "summary.json"
    for arguments in (
        (*work, "plan", world.data, "--name", hostile),
        (*work, "move-plans", world.model, world.data, "--name", hostile),
        (*work, "preprocess", world.data, "--plans", hostile),
        (*work, "preprocess", world.data, "--config", hostile),
        (*work, "run", world.data, "--plans", hostile, *FAST),
        (*work, "train", world.data, "--config", hostile, "--fold", "0"),
        (*work, "train", world.data, *FAST, "--fold", hostile),
        (*work, "preview-augmentation", world.data, "--plans", hostile),
        (*work, "select", world.data, "--plans", hostile),
        (*every_verb(world)["predict"], "--classes", hostile),
        ("report", world.model, "--scores", scores.parent / Path(hostile).name / "none"),
    ):
        refuse(world, name, *arguments)
