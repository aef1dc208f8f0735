"""Paths of raw data, preprocessed data and results; every folder and file name on disk is defined here."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from segwright.core.errors import ConfigError, DatasetError, ModelError, WorkspaceError, did_you_mean
from segwright.core.extensions.given import PREFIX
from segwright.core.extensions.registry import is_reference
from segwright.core.files.atomic_io import temporary_beside
from segwright.core.files.folder_record import FolderRecord
from segwright.core.files.names import below, path_problem

DATASET_JSON = "dataset.json"
FINGERPRINT_JSON = "dataset_fingerprint.json"
SPLITS_JSON = "splits_final.json"
PLANS_JSON = "plans.json"
TRAIN_JSON = "train.json"
SEGMENTS_JSON = "segments.json"
SUMMARY_JSON = "summary.json"
RAW_FOLDER_JSON = "raw_folder.json"
"""Beside preprocessed data: where the raw dataset lies."""
LOCK = ".lock"
SUBMISSIONS = "slurm"
"""In the results of a dataset: what was submitted to a cluster."""

MODEL_SEPARATOR = "__"
"""Between the name of a model, its plans and its configuration in the name of its folder."""

NAME_IT = "give this model a name of its own with --name NAME (in Python name=)"
"""End of a message about a model folder that another model uses."""

CASE_FOLDER_PREFIX = "segwright_"
"""Keeps our preprocessed cases apart from nnU-Net's, which deletes its own data folder before each run."""


DEFAULT_WORK = Path("segwright-work")
"""The folder of a workspace for which none is given."""

_NUMBERED = re.compile(r"^Dataset\d+_")


def name_of_model(name: str | None, trainer: str, network: str | None) -> str:
    """Return the first part of the name of a model's folder.

    Args:
        name: as the user gave it; None: the trainer class's, followed by the reference of a network of one's own.
        trainer: name of the trainer class.
        network: name or reference of the network.

    Raises:
        ConfigError: the name has characters that folders or other parts of their names need.

    >>> name_of_model(None, "Trainer", "mypkg.nets:build"), name_of_model(None, "Trainer", "residual-unet")
    ('Trainer-mypkg.nets.build', 'Trainer')
    """
    if name is None:
        own = "" if network is None or not is_reference(network) else network.removeprefix(PREFIX)
        words = re.findall(r"[\w.]+", own.replace(":", "."))
        return re.sub("_{2,}", "_", "-".join([trainer, *words]))
    if not isinstance(name, str):
        raise ConfigError(f"name {name!r}: expected text, not {type(name).__name__}")
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII) or MODEL_SEPARATOR in name or name.strip("._-") != name:
        raise ConfigError(
            f"name '{name}': expected letters, digits, '.', '-' and single '_', which do not begin or end it"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """nnU-Net's three trees (nnU-Net behaviour 1.1); `Workspace.under(folder)` puts all of them below one folder.

    Examples:
        >>> workspace = Workspace.under(Path("results-of-june"))  # doctest: +SKIP
        >>> segwright.fingerprint("raw/Dataset004_Hippocampus", workspace=workspace)  # doctest: +SKIP
    """

    raw: Path
    preprocessed: Path
    results: Path
    work: Path | None = None
    """The folder above all three, if there is one: links must not lead out of it."""

    @classmethod
    def under(cls, work: Path) -> Workspace:
        """Return the workspace whose three trees are sub-folders of `work`."""
        return cls(raw=work / "raw", preprocessed=work / "preprocessed", results=work / "results", work=work)

    @classmethod
    def default(cls) -> Workspace:
        """Return the workspace below `./segwright-work`."""
        return cls.under(DEFAULT_WORK.absolute())

    def resolve_dataset(self, dataset: str | Path | int) -> Path:
        """Return the raw folder of a dataset given by path, name (`Dataset004_X` or `X`) or id (`4`).

        Names and ids are those of datasets in the raw folder, and of others that were used by path before.

        Raises:
            DatasetError: nothing matches, several folders do, or a dataset used before has moved or changed.
        """
        if _is_dataset_path(dataset):
            return Path(os.path.abspath(str(dataset)))
        name = self.dataset_name(dataset)
        return self.raw / name if (self.raw / name).is_dir() else self._recorded_folder(name)

    def dataset_name(self, dataset: str | Path | int) -> str:
        """Return the name of a dataset given as to `resolve_dataset`; its raw data need not exist any more.

        Raises:
            DatasetError: nothing matches, or several datasets do.
        """
        if _is_dataset_path(dataset):
            return os.path.basename(os.path.abspath(str(dataset)))
        text = str(dataset)
        usable = {*_datasets(self.raw), *(file.parent.name for file in self.preprocessed.glob(f"*/{RAW_FOLDER_JSON}"))}
        derived = {*_datasets(self.preprocessed), *_datasets(self.results)}
        matches = _matching(text, usable) or _matching(text, derived)
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise DatasetError(f"dataset '{text}' is ambiguous: {', '.join(matches)}; give the whole name")
        if not path_problem(Path(text), "folder"):
            raise DatasetError(
                f"{text}: no {DATASET_JSON} in this folder; a raw dataset has it beside imagesTr and labelsTr"
            )
        known = sorted(usable | derived)
        hint = did_you_mean(text, known) if known else "; give the path of a folder that holds dataset.json"
        raise DatasetError(
            f"dataset '{text}' is neither a folder nor a name or id below {self.raw} or in {self.preprocessed}{hint}"
        )

    def find_results(self, target: str | Path) -> Path:
        """Return a path if it exists, else the results of a trained dataset given by name or id.

        Raises:
            ModelError: there are none.
        """
        if os.path.exists(target):
            return Path(target)
        trained = sorted(_datasets(self.results))
        found = _matching(str(target), trained)
        if len(found) != 1:
            known = ", ".join(trained) or "no dataset"
            raise ModelError(
                f"'{target}' is neither a folder nor the name or id of a trained dataset; {self.results} contains "
                f"{known}"
            )
        return self.results / found[0]

    def record_dataset(self, folder: Path) -> None:
        """Record where a raw dataset lies, so that its name and id find it."""
        record = FolderRecord.of(folder, DATASET_JSON)
        record.save(self._below(self.preprocessed, record.folder.name, RAW_FOLDER_JSON))

    def _recorded_folder(self, name: str) -> Path:
        """Return where a raw dataset of this name lies, as recorded.

        Raises:
            DatasetError: it is not recorded, or the folder is not what it was.
        """
        record = FolderRecord.load(self._below(self.preprocessed, name, RAW_FOLDER_JSON))
        if record is None:
            raise DatasetError(
                f"dataset '{name}' is not below {self.raw}, and {self.preprocessed} does not say where else it is; "
                "give the path of its folder"
            )
        file = record.folder / DATASET_JSON
        if wrong := path_problem(file):
            raise DatasetError(
                f"dataset '{name}': {file}: {wrong}; it was there when {self.preprocessed / name} was made; if it was "
                "moved, give the path of its folder"
            )
        if not record.is_current(DATASET_JSON):
            raise DatasetError(
                f"dataset '{name}': {file} has changed since {self.preprocessed / name} was made; to use it as it is "
                f"now, give the path {record.folder}"
            )
        return record.folder

    @property
    def models(self) -> Path:
        """The folder of installed models."""
        return self._below((self.results if self.work is None else self.work) / "models")

    @property
    def served_jobs(self) -> Path:
        """The folder of a server's jobs."""
        return self._below((self.results if self.work is None else self.work) / "serve")

    def installed_model(self, name: str) -> Path:
        """Return the folder of an installed model."""
        return self._below(self.models, name)

    def require_writable(self) -> None:
        """Make the output folders, so that one that is not writable is reported before any work starts.

        Raises:
            WorkspaceError: a folder cannot be made or written to.
        """
        for folder in (self._below(self.preprocessed), self._below(self.results)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe = temporary_beside(folder / "probe")  # threads and machines may check at the same time
                probe.touch()
                probe.unlink()
            except OSError as error:
                raise WorkspaceError(
                    f"work folder {folder}: cannot be written ({error.strerror}); choose another one with --work DIR"
                ) from error

    def preprocessed_dataset(self, name: str) -> Path:
        """Return the folder of everything derived from one raw dataset before training."""
        return self._below(self.preprocessed, name)

    def preprocessed_lock(self, name: str) -> Path:
        """Return the lock of everything derived from one raw dataset before training."""
        return self._below(self.preprocessed, name, LOCK)

    def dataset_copy(self, name: str) -> Path:
        """Return the copy of the raw `dataset.json` that belongs to the preprocessed data."""
        return self._below(self.preprocessed, name, DATASET_JSON)

    def fingerprint_file(self, name: str) -> Path:
        """Return the dataset's fingerprint."""
        return self._below(self.preprocessed, name, FINGERPRINT_JSON)

    def plans_file(self, name: str, plans: str) -> Path:
        """Return one plans file of the dataset."""
        return self._below(self.preprocessed, name, f"{plans}.json")

    def splits_file(self, name: str) -> Path:
        """Return the dataset's cross-validation splits."""
        return self._below(self.preprocessed, name, SPLITS_JSON)

    def case_folder(self, name: str, data_identifier: str) -> Path:
        """Return the folder of preprocessed cases of one data identifier."""
        return self._below(self.preprocessed, name, f"{CASE_FOLDER_PREFIX}{data_identifier}")

    def model_folder(self, name: str, model: str, plans: str, configuration: str) -> Path:
        """Return the folder of all folds of one model; its name is that of the trainer class, if it got no other."""
        return self._below(self.results, name, MODEL_SEPARATOR.join((model, plans, configuration)))

    def selected_folder(self, name: str) -> Path:
        """Return where the selected model of a dataset goes."""
        return self._below(self.results, name, "model")

    def ensemble_folder(self, name: str, ensemble: str) -> Path:
        """Return the folder of what an ensemble predicted in cross-validation."""
        return self._below(self.results, name, "ensembles", ensemble)

    def submissions(self, name: str) -> Path:
        """Return the folder of what was submitted to a cluster for a dataset."""
        return self._below(self.results, name, SUBMISSIONS)

    @staticmethod
    def lock_beside(folder: Path) -> Path:
        """Return the lock of a fold's folder or a selected model; beside it, so that it may be removed."""
        return folder.with_name(f".{folder.name}{LOCK}")

    @staticmethod
    def fold_folder(model_folder: Path, fold: int | str) -> Path:
        """Return the folder of one fold (`fold_0`, `fold_all`)."""
        return model_folder / f"fold_{fold}"

    def _below(self, tree: Path, *parts: str) -> Path:
        """Return a path in one of the trees, checked by `names.below`."""
        root = self.work if self.work is not None and tree.is_relative_to(self.work) else tree
        return below(root, *tree.relative_to(root).parts, *parts)


def _is_dataset_path(dataset: str | Path | int) -> bool:
    """Return whether this is the path of a folder with a dataset.json; a number is an id."""
    text = str(dataset)
    return not text.isdecimal() and not path_problem(Path(text) / DATASET_JSON)


def _datasets(tree: Path) -> list[str]:
    """Return the names of the folders of datasets in a tree."""
    return [folder.name for folder in tree.glob("Dataset*") if folder.is_dir()] if tree.is_dir() else []


def _matching(text: str, names: Collection[str]) -> list[str]:
    """Return the datasets that an id or a name, with or without `Dataset004_`, stands for; a whole name only itself.

    >>> names = ["Dataset004_Hippocampus", "Dataset005_Liver"]
    >>> _matching("4", names), _matching("Liver", names)
    (['Dataset004_Hippocampus'], ['Dataset005_Liver'])
    """
    if text in names:
        return [text]
    if text.isdecimal():
        return sorted(name for name in names if name.split("_")[0] == f"Dataset{int(text):03d}")
    return sorted(name for name in names if _NUMBERED.sub("", name) == text)
