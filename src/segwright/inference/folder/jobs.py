"""The cases that a run over a folder predicts, and its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segwright.core.errors import ConfigError
from segwright.core.files.names import below
from segwright.core.process_tuning import release_freed_memory
from segwright.data.cases import Case
from segwright.data.images.image_io import Volume, read_images
from segwright.data.labels import Labels
from segwright.inference.export.writers import ProbabilityFormat
from segwright.inference.folder.log_files import inputs_hash
from segwright.inference.reliability.uncertainty import map_files


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """Options of a run over a folder; see `predict_folder.predict_files`.

    Raises:
        ConfigError: there is no such part.
    """

    probability_format: ProbabilityFormat | None = None
    uncertainty: bool = False
    calibrated: bool = False
    overwrite: bool = False
    part: int = 0
    parts: int = 1
    wait: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.part < self.parts:
            more = "; give the number of parts with --parts N" if self.parts == 1 else ""
            raise ConfigError(f"part {self.part} of {self.parts}: parts are counted from 0 to {self.parts - 1}{more}")

    def to_json(self, labels: Labels) -> dict[str, Any]:
        """Return the options as `prediction.json` records them; `labels` name the classes."""
        probabilities = None
        if self.probability_format is not None:
            names = [labels.names[head] for head in self.probability_format.heads(labels)]
            probabilities = {"form": self.probability_format.kind, "classes": names}
        return {
            "probabilities": probabilities,
            "uncertainty": self.uncertainty,
            "calibrated": self.calibrated,
            "overwrite": self.overwrite,
            "part": self.part,
            "parts": self.parts,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One case to predict, and the files to write for it.

    Attributes:
        inputs: hash of size and time of the image files; the case is predicted again if it changes.
        temperature: divides the logits for the written probabilities.
    """

    case: Case
    output: Path
    probability_format: ProbabilityFormat | None
    probabilities: tuple[Path, ...]
    inputs: str
    maps: tuple[Path, ...] = ()
    temperature: float = 1.0

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is written for the case."""
        return (self.output, *self.probabilities, *self.maps)


def make_jobs(
    cases: Sequence[Case],
    output_folder: Path,
    options: PredictOptions,
    *,
    labels: Labels,
    file_ending: str,
    temperature: float,
) -> list[Job]:
    """Return the jobs of all cases; those of a part are `jobs[part::parts]`."""
    form = options.probability_format
    jobs = []
    for case in cases:
        name = case.identifier
        jobs.append(
            Job(
                case=case,
                output=below(output_folder, f"{name}{file_ending}"),
                probability_format=form,
                probabilities=() if form is None else form.files(output_folder, name, labels),
                inputs=inputs_hash(case, temperature if form else 1.0),
                maps=map_files(output_folder, name) if options.uncertainty else (),
                temperature=temperature,
            )
        )
    return jobs


def read_volume(case: Case, reader: str) -> Volume:
    """Read the images of a case.

    Raises:
        ImageError: a file is unreadable or holds values that no image has.
    """
    volume = read_images(case.images, reader, find_nonfinite=True)
    release_freed_memory(volume.array.nbytes)  # reading needed about as much again
    return volume
