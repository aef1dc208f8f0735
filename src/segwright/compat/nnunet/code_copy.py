"""Copy a trainer file, and the user's files that it imports, into the model folder, so that prediction can run them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from segwright.compat.nnunet.loading import LoadedTrainer
from segwright.compat.nnunet.trainer import overrides
from segwright.core.errors import ModelError
from segwright.core.files.atomic_io import atomic_path
from segwright.core.files.hashing import content_hash
from segwright.core.files.names import below

CODE_FOLDER: Final = "trainer_code"
"""In the model folder; each version of the code has a folder of its own in it, named by its hash."""

CODE: Final = "trainer_code"
"""Key of a training's record with its `CodeRecord`."""

_DIGITS: Final = 12


class CodeRecord(BaseModel):
    """The code that a fold was trained with.

    Attributes:
        class_name: of the trainer.
        file: the trainer file, as `main_file`.
        sha256: of it and the files that it imported, as `code_hashes`.
        builds_network: whether it builds the network.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    class_name: str
    file: str
    sha256: dict[str, str]
    builds_network: bool

    def differences(self, other: CodeRecord) -> list[str]:
        """Return the names of the class and the files that differ; a file may be elsewhere, or not imported yet."""
        names = [] if self.class_name == other.class_name else [f"class {self.class_name}"]
        if self.sha256[self.file] != other.sha256[other.file]:
            names.append(self.file)
        both = (self.sha256.keys() & other.sha256.keys()) - {self.file, other.file}
        return names + [name for name in sorted(both) if self.sha256[name] != other.sha256[name]]


def code_record(loaded: LoadedTrainer) -> CodeRecord:
    """Return the record of a trainer file and what it has imported so far."""
    return CodeRecord(
        class_name=loaded.class_name,
        file=main_file(loaded),
        sha256=code_hashes(loaded),
        builds_network=any(overrides(loaded.cls, hook) for hook in ("build_network_architecture", "initialize")),
    )


def code_hashes(loaded: LoadedTrainer) -> dict[str, str]:
    """Return the SHA-256 of each file by its path below the folder in which the trainer file's imports are searched."""
    return {name: sha256(file.read_bytes()).hexdigest() for name, file in _files(loaded).items()}


def code_folder(hashes: Mapping[str, str]) -> str:
    """Return where a version of the code is, relative to the model folder."""
    return f"{CODE_FOLDER}/{content_hash(dict(hashes))[:_DIGITS]}"


def main_file(loaded: LoadedTrainer) -> str:
    """Return the path of the trainer file below that folder."""
    return _below_root(loaded.file, _root(loaded)) or loaded.file.name


def copy_code(loaded: LoadedTrainer, model_folder: Path) -> None:
    """Copy the files into the model folder."""
    folder = code_folder(code_hashes(loaded))
    for name, file in _files(loaded).items():
        target = below(model_folder, *folder.split("/"), *name.split("/"))
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as temporary:
                temporary.write_bytes(file.read_bytes())


def checked_code(model_folder: Path, hashes: Mapping[str, str], main: str) -> Path:
    """Return the copy of the trainer file in a model folder, if all files are as they were.

    Raises:
        ModelError: one is missing or was changed.
    """
    folder = code_folder(hashes)
    for name, expected in hashes.items():
        path = below(model_folder, *folder.split("/"), *name.split("/"))
        if not path.is_file():
            raise ModelError(f"{path}: missing; the model needs this copy of its trainer file, copy it again")
        if sha256(path.read_bytes()).hexdigest() != expected:
            raise ModelError(f"{path}: was changed since the training; restore the trainer file's copy")
    if main not in hashes:
        raise ModelError(f"{model_folder}: the checkpoint does not list its trainer file '{main}'; it is damaged")
    return below(model_folder, *folder.split("/"), *main.split("/"))


def _files(loaded: LoadedTrainer) -> dict[str, Path]:
    root = _root(loaded)
    files = {main_file(loaded): loaded.file.absolute()}
    for module in loaded.modules.own_modules.values():
        file = getattr(module, "__file__", None)
        name = None if file is None else _below_root(Path(file), root)
        if file is not None and name is not None:
            files[name] = Path(file)
    return dict(sorted(files.items()))


def _root(loaded: LoadedTrainer) -> Path:
    return loaded.modules.root or loaded.file.absolute().parent


def _below_root(file: Path, root: Path) -> str | None:
    path = file.absolute()
    return path.relative_to(root.absolute()).as_posix() if path.is_relative_to(root.absolute()) else None
