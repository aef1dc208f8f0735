"""Helpers, files, and that every name of the table exists."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segwright.compat.nnunet.module_table import MODULES
from segwright.compat.nnunet.modules import StandIns, load_target
from segwright.compat.nnunet.names import files, helpers
from segwright.core.errors import ConfigError, SegwrightError
from segwright.data.crossval.splits import default_splits


def test_every_name_of_the_table_exists() -> None:
    for names in MODULES.values():
        for reference in names.values():
            if not reference.startswith(("segwright.compat.nnunet.trainer:", "segwright.compat.nnunet.variants:")):
                load_target(reference)


def test_every_module_can_be_imported() -> None:
    with StandIns():
        for module in MODULES:
            assert importlib.import_module(module).__name__ == module
    assert not [name for name in sys.modules if name.startswith("nnunetv2")]


def test_every_name_can_be_imported_with_a_star() -> None:
    names: dict[str, Any] = {}
    with StandIns():
        exec("from batchgenerators.utilities.file_and_folder_operations import *", names)
    assert {"join", "isfile", "maybe_mkdir_p", "load_json", "save_json", "subfiles", "os"} <= {*names}


def test_step_results_are_collated() -> None:
    steps = [{"loss": np.float32(step), "tp": np.full(2, step), "keys": ["a", "b"]} for step in (1, 2)]
    collated = helpers.collate_outputs(steps)
    assert collated["loss"] == [1, 2]
    assert collated["tp"].tolist() == [[1, 1], [2, 2]]
    assert collated["keys"] == ["a", "b", "a", "b"]
    assert helpers.collate_outputs([{"loss": torch.ones(())}])["loss"] == [1]


def test_other_step_results_are_refused() -> None:
    with pytest.raises(ConfigError, match="a step returned 'x' as object"):
        helpers.collate_outputs([{"x": object()}])


def test_folds_are_those_of_our_splits() -> None:
    names = [f"case_{index:02d}" for index in range(13)]
    expected = [{"train": [*split.train], "val": [*split.val]} for split in default_splits(names)]
    assert helpers.generate_crossval_split(names) == expected
    with pytest.raises(ConfigError, match="5 folds of 3 cases"):
        helpers.generate_crossval_split(names[:3])


def test_initial_weights() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2000, 3), nn.InstanceNorm3d(2, affine=True))
    network.apply(helpers.InitWeights_He(0.01))
    conv = network[0]
    assert isinstance(conv, nn.Conv3d)
    assert conv.bias is not None
    assert conv.weight.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.02)
    assert not conv.bias.any()


def test_waits_for_results_of_busy_workers() -> None:
    def state(**answers: bool) -> Any:
        return SimpleNamespace(**{name: lambda answer=answer: answer for name, answer in answers.items()})

    workers, results = [state(is_alive=True)], [state(ready=False)] * 2
    assert helpers.check_workers_alive_and_busy(None, workers, results, allowed_num_queued=1)
    assert not helpers.check_workers_alive_and_busy(None, workers, results, allowed_num_queued=2)
    with pytest.raises(RuntimeError, match="a worker process has ended"):
        helpers.check_workers_alive_and_busy(None, [state(is_alive=False)], [])


def test_small_helpers() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(helpers.softmax_helper_dim0(x), x.softmax(0))
    helpers.empty_cache(torch.device("cpu"))
    with helpers.dummy_context():
        assert 1 <= helpers.get_allowed_n_proc_DA() <= 12
    document = {"a": np.float32(1), "b": [np.int64(2), np.zeros(2)], "c": {"d": torch.device("cpu")}}
    helpers.recursive_fix_for_json_export(document)
    assert document == {"a": 1, "b": [2, [0, 0]], "c": {"d": "cpu"}}


def test_published_trainers_are_found_by_name(base: type) -> None:
    assert helpers.recursive_find_python_class("folder", "nnUNetTrainer", "nnunetv2.training.nnUNetTrainer") is base
    assert helpers.recursive_find_python_class("folder", "nnUNetTrainerBN", "module") is not None
    assert helpers.recursive_find_python_class("folder", "SomePlanner", "module") is None


def test_files_and_folders(tmp_path: Path) -> None:
    folder = str(tmp_path)
    files.maybe_mkdir_p(files.join(folder, "b", "c"))
    files.save_json({"z": 1, "a": [2]}, files.join(folder, "x.json"), sort_keys=False)
    assert files.load_json(files.join(folder, "x.json")) == {"z": 1, "a": [2]}
    assert (tmp_path / "x.json").read_text().index("z") < (tmp_path / "x.json").read_text().index("a")
    (tmp_path / "y.txt").touch()
    assert files.subfiles(folder) == [files.join(folder, "x.json"), files.join(folder, "y.txt")]
    assert files.subfiles(folder, join=False, suffix=".json") == ["x.json"]
    assert files.subfiles(folder, join=False, prefix=["y", "q"]) == ["y.txt"]
    assert files.subdirs(folder, join=False) == ["b"]


def test_pickles_are_refused() -> None:
    with pytest.raises(SegwrightError, match="pickles are not read"):
        files.load_pickle("x.pkl")
    with pytest.raises(SegwrightError, match="pickles are not written"):
        files.write_pickle({}, "x.pkl")
