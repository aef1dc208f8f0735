"""No code from a model, dataset, work folder or the current folder is imported (folders full of traps).

A trap is a module or a function that leaves a file when it is imported or called. Each test compares the whole tree
around before and after: nothing but the places that a verb was told to write to may have changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from journeys import call
from traps import CONFIGURATION, World, edit, every_verb, predict, stop_server_at

from segwright import api
from segwright.cli.main import Program
from segwright.core.errors import SegwrightError
from segwright.data.plan import Plan
from segwright.inference.models.model_folder import load_predictor
from segwright.training.checkpointing import checkpoints
from segwright.training.finetuning import read_source

SOURCE = Path(__file__).parents[2] / "src"
REFERENCES = (
    "evil:build",
    "evil.build",
    "../here/evil:build",
    "..evil:build",
    "shutil:rmtree",
    "os:mkdir",
    "torch.hub:load",
    "torch:load",
    "numpy.f2py.__main__:main",
    "segwright.core.files.atomic_io:write_text",
    "segwright.api:import_model",
    "segwright.training.trainer:Trainer.rebuild_network",
    "segwright.networks.build:NETWORKS.get",
)


def name_network(model: Path, reference: str) -> None:
    """Make every checkpoint of a model refer to a network, with arguments that a malicious function would use."""
    kwargs = {"path": str(model.parents[1] / "victim"), "name": "x", "patch_size": [8, 8, 8]}
    for header in model.glob("fold_*/checkpoint_*.json"):
        edit(header, lambda document: document.update(network={"reference": reference, "kwargs": kwargs}))


def interrupted(world: World, **settings: Any) -> None:
    """Turn the finished fold into an interrupted one that was trained with untrusted settings."""
    final = checkpoints.load(checkpoints.checkpoint_file(world.fold, "final"))
    config = {**final.state.config, **settings}
    state = final.state.model_copy(update={"config": config, "config_set": [*final.state.config_set, *settings]})
    checkpoints.delete(world.fold, "final")
    shutil.rmtree(world.fold / "validation")
    checkpoints.save(world.fold, "latest", state, final.weights)
    edit(world.fold / "train.json", lambda document: document.update(config=config))


def require_refused(world: World, arguments: Sequence[object], *words: str, writable: Sequence[Path] = ()) -> None:
    before = world.tree(*writable)
    result = call(*arguments)
    assert result.exit_code == 1, (arguments, result.output, result.exception)
    for word in words:
        assert word in result.stderr, (arguments, result.stderr)
    assert world.tree(*writable) == before
    assert not world.marker.exists()


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_network_that_a_model_names_is_not_imported(world: World, reference: str) -> None:
    name_network(world.model, reference)
    name_network(world.fold.parent, reference)
    require_refused(world, predict(world), reference, writable=[world.out])
    require_refused(world, ("export-model", world.model, world.out / "new"), reference, writable=[world.out])
    before = world.tree(world.out)
    assert call("report", world.model, "-o", world.out / "report.html", "--no-pictures").exit_code == 0
    for door in (lambda: api.load_model(world.model, device="cpu"), lambda: load_predictor(world.model, device="cpu")):
        with pytest.raises(SegwrightError):
            door()
    assert read_source(world.model).weights  # weights for fine-tuning, whatever network they are of
    assert world.tree(world.out) == before


SETTINGS: dict[str, Any] = {
    "network": "evil:build",
    "loss": "evil:loss",
    "optimizer": "evil:optimizer",
    "schedule": "warmup+evil:schedule",
    "sampler": "evil:sampler",
    "augmentation": "evil:recipe",
    "callbacks": ["evil:Callback"],
    "loggers": ["shutil:rmtree"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_code_that_a_work_folder_names_is_not_resumed_with(world: World, setting: str) -> None:
    interrupted(world, **{setting: SETTINGS[setting]})
    reference = "shutil:rmtree" if setting == "loggers" else "evil:"
    options = ("--config", CONFIGURATION, "--device", "cpu")
    for verb in (("run", world.data, *options), ("train", world.data, *options, "--fold", "0", "--resume")):
        before = [*world.fold.iterdir()]
        require_refused(world, ("--work", world.work, *verb), reference, "--trust-code", setting, writable=[world.work])
        assert [*world.fold.iterdir()] == before


def test_a_model_that_is_selected_again_is_not_trusted(world: World) -> None:
    name_network(world.fold.parent, "evil:build")
    shutil.rmtree(world.fold / "validation" / "observed")
    select = ("--work", world.work, "select", world.data, "-o", world.out / "selected", "--device", "cpu")
    require_refused(world, select, "evil:build", "--trust-code", writable=[world.work, world.out])


PARTS = {
    "image_reader_writer": "evil.Reader",
    "label_manager": "evil.Labels",
    "preprocessor_name": "evil.Preprocessor",
    "normalization_schemes": ["evil:scheme"],
    "resampling_fn_data": "evil.resample",
    "resampling_fn_seg": "evil:resample",
    "resampling_fn_probabilities": "os.system",
    "network_class_name": "evil.Net",
}


def name_part(plans: Path, key: str) -> None:
    def change(document: dict[str, Any]) -> None:
        configuration = document["configurations"][CONFIGURATION]
        owner = (
            document if key in document else configuration if key in configuration else configuration["architecture"]
        )
        owner[key] = PARTS[key]

    edit(plans, change)


@pytest.mark.parametrize("key", PARTS)
def test_a_part_that_a_plan_names_is_not_imported(world: World, key: str) -> None:
    name_part(world.model / "plans.json", key)
    for header in world.model.glob("fold_*/checkpoint_*.json"):
        edit(header, lambda document: document.pop("setup_hash", None))  # or the plan would be refused for its hash
    if key == "network_class_name":
        name_network(world.model, PARTS[key])  # type: ignore[arg-type]
    require_refused(world, predict(world), "evil" if "evil" in str(PARTS[key]) else "os.system", writable=[world.out])


@pytest.mark.parametrize("key", ["normalization_schemes", "network_class_name", "image_reader_writer"])
def test_a_plan_of_the_work_folder_is_not_trusted(world: World, key: str) -> None:
    name_part(world.work / "preprocessed" / world.data.name / "nnUNetPlans.json", key)
    shutil.rmtree(world.work / "results")
    options = ("--config", CONFIGURATION)
    fast = ("--device", "cpu", "--epochs", "1")
    verbs = [("run", world.data, *options, *fast), ("train", world.data, *options, "--fold", "0", *fast)]
    if key != "network_class_name":
        verbs += [
            ("preprocess", world.data, *options),
            ("preview-augmentation", world.data, *options, "--samples", "1"),
        ]
    for verb in verbs:
        require_refused(world, ("--work", world.work, *verb), "evil", writable=[world.work])


def test_a_reader_that_a_dataset_names_is_not_imported(world: World) -> None:
    edit(world.data / "dataset.json", lambda document: document.update(overwrite_image_reader_writer="evil.Reader"))
    before = world.tree()
    assert call("check", world.data).exit_code == 0
    assert world.tree() == before


def test_links_in_the_place_for_results_are_replaced_not_followed(world: World) -> None:
    (world.out / "labels").mkdir()
    for image in (world.data / "imagesTs").iterdir():
        (world.out / "labels" / image.name.replace("_0000", "")).symlink_to(world.root / "victim")
    before = world.tree(world.out)
    done = call(*predict(world), "--overwrite")
    assert done.exit_code in (0, 1), done.output
    assert world.tree(world.out) == before


def test_every_verb_leaves_the_traps_alone(world: World) -> None:
    verbs = every_verb(world)
    assert {*verbs} == {*Program.functions}
    before = world.tree(world.out, world.work)
    for verb, arguments in verbs.items():
        if verb == "ensemble":
            shutil.copytree(world.out / "labels", world.out / "again")
        if verb == "install":
            shutil.make_archive(str(world.out / "model"), "zip", world.model.parent, world.model.name)
        if verb == "serve":
            stop_server_at(int(str(arguments[-1])))
        if verb == "run-task":
            (world.out / "graph.json").write_text(call(*verbs["tasks"], "--json").stdout)
        result = call(*arguments)
        few_cases = verb == "compare"  # which needs six; everything was read by then
        assert result.exit_code == few_cases, (verb, result.output, result.exception)
        assert world.tree(world.out, world.work) == before, verb
        assert not world.marker.exists(), verb


PROGRAM = """
import sys
seen = []
def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith({here!r}):
        seen.append(str(arguments[0]))
sys.addaudithook(watch)
from segwright.cli.main import main
sys.argv = ["segwright", *{words!r}]
try:
    main()
finally:
    print("OPENED", seen, file=sys.stderr)
"""


def subprocess_of(command: Sequence[str], *, here: Path, path: str = str(SOURCE)) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=here, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("verb", ["status", "check", "predict"])
def test_the_current_folder_is_no_place_to_import_from(world: World, verb: str) -> None:
    (world.here / "probe.py").write_text("import sys\nprint(*sys.modules)\n")
    needed = subprocess_of(["-m", "probe"], here=world.here).stdout.split()  # by Python, to start any module with -m
    for name in sorted(sys.stdlib_module_names - {*needed}):
        shutil.copy(world.here / "numpy.py", world.here / f"{name}.py")
    words = [str(word) for word in every_verb(world)[verb]]
    before = world.tree(world.out)
    done = subprocess_of(["-m", "segwright", *words], here=world.here, path=f"{SOURCE}{os.pathsep}")
    assert done.returncode == 0, done.stderr
    assert world.tree(world.out) == before
    assert not world.marker.exists()


def test_nothing_in_the_current_folder_is_opened(world: World) -> None:
    words = [str(word) for word in every_verb(world)["predict"]]
    program = PROGRAM.format(here=str(world.here), words=words)
    done = subprocess_of(["-P", "-c", program], here=world.here)
    assert "OPENED []" in done.stderr, done.stderr


def test_a_deleted_current_folder_is_no_error(world: World) -> None:
    here = world.root / "gone"
    here.mkdir()
    program = f"import os, subprocess, sys; os.rmdir({str(here)!r}); sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    command = [sys.executable, "-m", "segwright", *map(str, predict(world))]
    done = subprocess_of(["-c", program, *command], here=here)
    assert done.returncode == 0, done.stderr


def test_what_the_user_names_is_found_here_and_only_that(world: World) -> None:
    (world.here / "mynets.py").write_text(
        "import blocks\nfrom torch import nn\n\ndef build(inputs, outputs, *, patch_size, deep_supervision):\n"
        "    import late\n    return blocks.layer(inputs, outputs)\n"
    )
    (world.here / "blocks.py").write_text("from torch import nn\n\ndef layer(a, b):\n    return nn.Conv3d(a, b, 1)\n")
    (world.here / "late.py").write_text("")
    train = ("--work", world.work, "train", world.data, "--config", CONFIGURATION, "--fold", "1", "--device", "cpu")
    fast = ("--epochs", "1", "--iterations", "1", "--batch-size", "2", "--set", "num_val_iterations_per_epoch=1")
    before = world.tree(world.work, world.out)
    shutil.rmtree(world.fold.parent)
    trained = call(*train, *fast, "--network", "mynets:build", "--name", "Trainer")
    assert trained.exit_code == 0, trained.output
    folder = world.fold.parent
    assert (
        json.loads((folder / "fold_1" / "checkpoint_final.json").read_text())["network"]["reference"] == "mynets:build"
    )
    for name in ("mynets", "blocks", "late"):
        sys.modules.pop(name, None)
    words = ("predict", "-m", folder, "-i", world.data / "imagesTs", "-o", world.out / "own", "--device", "cpu")
    assert call(*words).exit_code == 1
    assert call(*words, "--network", "mynets:other").exit_code == 1
    assert "mynets" not in sys.modules
    assert call(*words, "--network", "mynets:build").exit_code == 0
    assert call(*words, "--overwrite", "--trust-code").exit_code == 0
    assert world.tree(world.work, world.out) == before
    assert Plan.load(folder / "plans.json").plans_name == "nnUNetPlans"
