"""nnU-Net's folders: the environment variables, names and ids of datasets, folders of models."""

from __future__ import annotations

import os
from pathlib import Path

from segwright.core.errors import ConfigError, DatasetError, ModelError, PlanError, did_you_mean
from segwright.data.plan import Plan
from segwright.workspace import Workspace

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"


def folder_of(variable: str) -> Path:
    """Return the folder that a variable names.

    Raises:
        ConfigError: the variable is not set.
    """
    found = os.environ.get(variable)
    if not found:
        raise ConfigError(f"the environment variable {variable} is not set; set it with: export {variable}=FOLDER")
    return Path(found).absolute()


def preparing_workspace() -> Workspace:
    """Return the workspace of commands that need no results; `nnUNet_results` may be unset, as in nnU-Net."""
    preprocessed = folder_of(PREPROCESSED)
    results = folder_of(RESULTS) if os.environ.get(RESULTS) else preprocessed
    return Workspace(raw=folder_of(RAW), preprocessed=preprocessed, results=results)


def full_workspace() -> Workspace:
    """Return the workspace of commands that train or compare models."""
    return Workspace(raw=folder_of(RAW), preprocessed=folder_of(PREPROCESSED), results=folder_of(RESULTS))


def dataset_name(text: str) -> str:
    """Return the name of a dataset given by name or id, from the folders in all three trees, as nnU-Net does.

    Raises:
        DatasetError: there is no such dataset, or several have the id.
    """
    if text.startswith("Dataset"):
        return text
    if not text.isdecimal():
        raise DatasetError(f"dataset '{text}': expected an id such as 4, or a name such as Dataset004_Hippocampus")
    trees = [Path(os.environ[name]) for name in (RAW, PREPROCESSED, RESULTS) if os.environ.get(name)]
    prefix = f"Dataset{int(text):03d}"
    names = {path.name for tree in trees if tree.is_dir() for path in tree.glob(f"{prefix}*") if path.is_dir()}
    found = sorted(name for name in names if name.partition("_")[0] == prefix)
    if not found:
        listed = ", ".join(map(str, trees)) or f"{RAW}, {PREPROCESSED} and {RESULTS} are not set"
        raise DatasetError(f"dataset {text}: no folder {prefix}_NAME in {listed}; check the id, or convert the dataset")
    if len(found) > 1:
        raise DatasetError(f"dataset {text}: several datasets have this id ({', '.join(found)}); give the name")
    return found[0]


def raw_dataset(workspace: Workspace, text: str) -> Path:
    """Return the raw folder of a dataset given by name or id.

    Raises:
        DatasetError: it does not exist.
    """
    folder = workspace.raw / dataset_name(text)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such dataset; Segwright reads the raw dataset in every stage but prediction")
    return folder


def load_plan(workspace: Workspace, dataset: str, name: str) -> Plan:
    """Return the plans of a name.

    Raises:
        PlanError: there are none.
    """
    file = workspace.plans_file(dataset, name)
    if not file.is_file():
        raise PlanError(f"{file}: no such plans; run nnUNetv2_plan_experiment -d {dataset} first")
    return Plan.load(file)


def trained_model(dataset: str, trainer: str, plans: str, configuration: str) -> Path:
    """Return the folder of a trained model.

    Raises:
        ModelError: there is none.
    """
    results = folder_of(RESULTS)
    name = dataset_name(dataset)
    workspace = Workspace(raw=results, preprocessed=results, results=results)
    folder = workspace.model_folder(name, trainer, plans, configuration)
    if not folder.is_dir():
        known = sorted(path.name for path in (results / name).glob("*__*__*"))
        raise ModelError(f"{folder}: no such model{did_you_mean(folder.name, known)}")
    return folder
