"""How arguments are arranged and read before a verb sees them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from segwright.cli.app import reorder_arguments
from segwright.cli.options import fold_numbers, one_fold, split_list, workspace_of
from segwright.cli.startup import shorten_openmp_spinning

COMMANDS = ["run", "predict", "preprocess"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["run", "4", "--work", "w"], ["--work", "w", "run", "4"]),
        (["run", "4", "--work=w", "-v"], ["--work=w", "-v", "run", "4"]),
        (["run", "4", "--config", "a", "b"], ["run", "4", "--config", "a", "--config", "b"]),
        (["run", "--config", "2d", "3d_fullres", "4"], ["run", "--config", "2d", "--config", "3d_fullres", "4"]),
        (["run", "--config", "2d", "Dataset004_X"], ["run", "--config", "2d", "Dataset004_X"]),
        (["run", "--folds", "0", "4"], ["run", "--folds", "0", "4"]),
        (["run", "4", "--folds", "0", "1"], ["run", "4", "--folds", "0", "--folds", "1"]),
        (["predict", "--folds", "0", "1", "-i", "x"], ["predict", "--folds", "0", "--folds", "1", "-i", "x"]),
        (["run", "--", "--work", "w"], ["run", "--", "--work", "w"]),
        (["run", "4", "--work"], ["run", "4", "--work"]),
    ],
)
def test_arguments_are_arranged(given: list[str], expected: list[str]) -> None:
    assert reorder_arguments(given, commands=COMMANDS) == expected


def test_words_come_from_repeated_options_and_commas() -> None:
    assert split_list(["2d, 3d_fullres", "2d", ""]) == ("2d", "3d_fullres")


def test_folds_are_numbers_or_all() -> None:
    assert (fold_numbers(["0,1", "4"]), fold_numbers(["all"]), fold_numbers(None)) == ((0, 1, 4), "all", None)
    assert (one_fold("3"), one_fold("all")) == (3, "all")


@pytest.mark.parametrize("text", ["x", "-1", "0.5", "1,all"])
def test_other_folds_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a fold"):
        fold_numbers([text])


def _context(work: Path | None) -> typer.Context:
    class Context:
        obj = work

    return Context()  # type: ignore[return-value]


def test_the_workspace_lies_below_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    assert workspace_of(_context(None)).results == tmp_path / "segwright-work" / "results"


def test_variables_are_honoured_without_work_and_raw_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / f"my_{name}"))
    assert workspace_of(_context(None)).results == tmp_path / "my_results"
    explicit = workspace_of(_context(tmp_path / "w"))
    assert (explicit.raw, explicit.results) == (tmp_path / "my_raw", tmp_path / "w" / "results")
    (tmp_path / "w" / "raw").mkdir(parents=True)
    assert workspace_of(_context(tmp_path / "w")).raw == tmp_path / "w" / "raw"


@pytest.mark.parametrize("chosen", [None, "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_threads_wait_briefly_unless_the_user_has_chosen(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    if chosen:
        monkeypatch.setenv(chosen, "7")
    shorten_openmp_spinning()
    found = {name: os.environ[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ}
    assert found == ({chosen: "7"} if chosen else {"GOMP_SPINCOUNT": "3000"})
