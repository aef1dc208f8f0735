"""Python functions in a folder full of traps: no trap is imported, and only output folders change."""

from __future__ import annotations

import inspect
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from traps import CONFIGURATION, World

import segwright
from segwright import api
from segwright.core.errors import SegwrightError
from segwright.core.interrupt import StopRequest
from segwright.workspace import Workspace

HARMLESS = frozenset({"explain", "keyword_values", "tune_process"}) | {
    *(
        "ConfigurationCost",
        "FoldStatus",
        "InstalledModel",
        "MachineReport",
        "PlanOptions",
        "SlurmOptions",
        "TrainConfig",
        "Trainer",
        "Workspace",
    )
}
"""Public functions that neither read nor write files, and classes."""

HOSTILE = ("../../victim", "/victim", "a/b", "..", ".", "", "a\0b", "a\nb", "a\x1b[2J", ".hidden", "x" * 300, "\udcff")

WORKSPACE: Mapping[str, Callable[[Workspace, str], object]] = MappingProxyType(
    {
        "resolve_dataset": lambda place, name: place.resolve_dataset(name),
        "installed_model": lambda place, name: place.installed_model(name),
        "dataset_name": lambda place, name: place.raw / place.dataset_name(name),
        "preprocessed_dataset": lambda place, name: place.preprocessed_dataset(name),
        "preprocessed_lock": lambda place, name: place.preprocessed_lock(name),
        "dataset_copy": lambda place, name: place.dataset_copy(name),
        "fingerprint_file": lambda place, name: place.fingerprint_file(name),
        "plans_file": lambda place, name: place.plans_file("Dataset007_Tiny", name),
        "splits_file": lambda place, name: place.splits_file(name),
        "case_folder": lambda place, name: place.case_folder("Dataset007_Tiny", name),
        "model_folder": lambda place, name: place.model_folder("Dataset007_Tiny", name, "nnUNetPlans", CONFIGURATION),
        "submissions": lambda place, name: place.submissions(name),
        "selected_folder": lambda place, name: place.selected_folder(name),
        "ensemble_folder": lambda place, name: place.ensemble_folder("Dataset007_Tiny", name),
    }
)
WITHOUT_NAMES = frozenset(
    {"under", "default", "require_writable", "lock_beside", "fold_folder", "record_dataset", "find_results"}
)
"""Public functions that take folders, of the user or returned by others, or a number."""


def every_function(world: World) -> dict[str, Callable[[], object]]:
    """Return a call of every public function that reads or writes files; each of them ends."""
    place = Workspace.under(world.work)
    data, model, out = world.data, world.model, world.out
    held_out = model / "fold_0" / "validation"
    described = data / "dataset.json"
    fast = {"device": "cpu", "workspace": place}

    def use_model() -> None:
        predictor = api.load_model(model, device="cpu")
        predictor.predict_files(data / "imagesTs", out / "of_model")
        predictor.predict(np.zeros((12, 12, 12), np.float32), spacing=(1, 1, 1))

    def combine() -> None:
        shutil.copytree(out / "labels", out / "again")
        api.ensemble([out / "labels", out / "again"], out / "ensemble", dataset_json=described)

    def install() -> None:
        api.install(shutil.make_archive(str(out / "model"), "zip", model.parent, model.name), workspace=place)

    def run_command(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 0, "7\n" if words[0] == "sbatch" else "", "")

    def serve() -> None:
        stop = StopRequest()
        stop.request("at once")
        api.serve(model, port=0, device="cpu", jobs=out / "jobs", stop=stop)

    def use_tasks() -> None:
        graph = api.tasks(data, images=data / "imagesTs", output=out / "parts", **fast)
        assert [api.run_task(graph.run, task).error for task in graph.tasks] == [()] * 4

    return {
        "check": lambda: api.check(data, workspace=place),
        "fingerprint": lambda: api.fingerprint(data, workspace=place),
        "plan": lambda: api.plan(data, workspace=place),
        "plan_from_fingerprint": lambda: api.plan_from_fingerprint(
            world.work / "preprocessed" / data.name / "dataset_fingerprint.json", described
        ),
        "preprocess": lambda: api.preprocess(data, workspace=place, configurations=[CONFIGURATION]),
        "preview_augmentation": lambda: api.preview_augmentation(
            data, workspace=place, samples=1, output=out / "preview.html"
        ),
        "move_plans": lambda: api.move_plans(model, data, name="moved", workspace=place),
        "train": lambda: api.train(data, configuration=CONFIGURATION, fold=0, resume=True, **fast),
        "run": lambda: api.run(data, configurations=[CONFIGURATION], budget="2s", **fast),
        "tasks": lambda: api.tasks(data, **fast),
        "run_task": use_tasks,
        "submit": lambda: api.submit(api.tasks(data, **fast), run_command=run_command),
        "queued_tasks": lambda: api.queued_tasks(data, workspace=place, run_command=run_command),
        "cancel": lambda: api.cancel(data, workspace=place, run_command=run_command),
        "select": lambda: api.select(data, output=out / "selected", **fast),
        "load_model": use_model,
        "serve": serve,
        "predict": lambda: api.predict(
            model, data / "imagesTs", out / "labels", probabilities=True, uncertainty=True, device="cpu"
        ),
        "ensemble": combine,
        "evaluate": lambda: api.evaluate(
            data / "labelsTr", held_out, dataset_json=described, output=out / "scores.json", csv=out / "scores.csv"
        ),
        "overlay": lambda: api.overlay(data, out / "sheets", contours=True, slices=2),
        "compare": lambda: api.compare([held_out / "summary.json", out / "scores.json"]),
        "accumulate_crossval": lambda: api.accumulate_crossval(model, out / "crossval"),
        "determine_postprocessing": lambda: api.determine_postprocessing(
            data / "labelsTr", held_out, dataset_json=described, output=out / "postprocessing.json"
        ),
        "apply_postprocessing": lambda: api.apply_postprocessing(
            held_out, out / "post", postprocessing=out / "postprocessing.json", dataset_json=described
        ),
        "segments": lambda: api.segments(model, out / "segments.json"),
        "export_model": lambda: api.export_model(model, out / "exported"),
        "import_model": lambda: api.import_model(out / "exported", out / "imported"),
        "install": install,
        "pack": lambda: api.pack(model, out / "shared.zip", license="MIT"),
        "model_info": lambda: api.model_info(out / "shared.zip"),
        "installed_models": lambda: api.installed_models(workspace=place),
        "write_report": lambda: api.write_report(model, out / "report.html", workspace=place),
        "find_plan": lambda: api.find_plan(world.work),
        "find_fingerprint": lambda: api.find_fingerprint(world.work),
        "find_scores": lambda: api.find_scores(world.work),
        "status": lambda: api.status(world.work),
        "doctor": lambda: api.doctor("cpu", workspace=place, test_layers=False),
        "training_costs": lambda: api.training_costs(data, api.plan(data, workspace=place), **fast),
        "convert": lambda: api.convert("folders", data, out / "Dataset008_Made", images="imagesTr", labels="labelsTr"),
        "init": lambda: api.init(out / "Dataset008_Made", force=True),
        "demo": lambda: api.demo(out / "demo", budget="2s", device="cpu"),
    }


def test_every_python_function_leaves_the_traps_alone(world: World) -> None:
    functions = every_function(world)
    assert {*functions} == ({*segwright.__all__} | {*api.__all__}) - HARMLESS
    before = world.tree(world.out, world.work)
    for name, function in functions.items():
        few_cases = name == "compare"  # which needs six; everything was read by then
        with pytest.raises(SegwrightError, match="6") if few_cases else nullcontext():
            function()
        assert world.tree(world.out, world.work) == before, name
        assert not world.marker.exists(), name


def test_every_path_of_a_workspace_is_walked() -> None:
    methods = {name for name, _ in inspect.getmembers(Workspace, callable) if not name.startswith("_")}
    assert methods == {*WORKSPACE} | WITHOUT_NAMES


@pytest.mark.parametrize("method", WORKSPACE)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leads_out_of_a_workspace(method: str, name: str, tmp_path: Path) -> None:
    place = Workspace.under(tmp_path)
    try:
        path = WORKSPACE[method](place, name)
    except SegwrightError:
        return
    assert str(path).startswith(f"{tmp_path}/"), path
    assert "/../" not in str(path)
    assert "\0" not in str(path)


@pytest.mark.parametrize(
    "part", ["raw", "preprocessed", "results", "predictions", "pictures", "raw/Dataset900_Phantom"]
)
def test_the_demo_follows_no_link_out_of_its_folder(part: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name in ("Dataset900_Phantom", "imagesTr"):
        (outside / name).mkdir(parents=True)
        (outside / name / "kept").touch()
    place = tmp_path / "demo" / part
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    with pytest.raises(SegwrightError, match="link"):
        api.demo(tmp_path / "demo", budget="1s", fresh=True, device="cpu")
    assert sorted(outside.rglob("*")) == before
