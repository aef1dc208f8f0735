"""Find what a trainer class of nnU-Net stands for: settings of our trainer, or a file with the class."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from segwright.cli.nnunet.names import TRAINER
from segwright.core.errors import ConfigError

EXTERNAL: Final = "nnUNet_extTrainer"
"""Variable with the folders of a user's trainer files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerChoice:
    """What trains in place of a trainer class.

    Attributes:
        name: of the class, the first part of the name of model folders.
        settings: of our trainer, if the class is one of nnU-Net's own.
        file: reference of the class in a trainer file, `FILE.py:Class`.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None


def find_trainer(name: str, dims: int, variables: Mapping[str, str]) -> TrainerChoice:
    """Return what trains in place of a trainer class.

    Args:
        name: of the class.
        dims: spatial axes of a patch.
        variables: of the environment.

    Raises:
        ConfigError: there is no such class, or it cannot be trained here.
    """
    if name == TRAINER:
        return TrainerChoice(name=name)
    roots = [Path(text) for text in variables.get(EXTERNAL, "").split(os.pathsep) if text]
    for file in _files(roots):
        if name in _classes(file):
            return TrainerChoice(name=name, file=f"{file}:{name}")
    from segwright.compat.nnunet.variants import VARIANTS, settings_of

    if name not in VARIANTS:
        where = ", ".join(map(str, roots)) or f"{EXTERNAL} is not set"
        raise ConfigError(
            f"-tr {name}: neither one of nnU-Net's trainers nor a class in a file of {EXTERNAL} ({where}); set it to "
            "the folder of your trainer file"
        )
    return TrainerChoice(name=name, settings=settings_of(name, dims))


def _files(roots: list[Path]) -> Iterator[Path]:
    for root in roots:
        yield from sorted(root.rglob("*.py"))


def _classes(file: Path) -> set[str]:
    """Return the names of the classes that a file defines; the file is not run."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
