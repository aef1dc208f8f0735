"""Calibrate probabilities with one temperature per model (Guo et al., ICML 2017); labels do not change.

`evaluation.calibration` fits it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from segwright.core.files.json_documents import parse_document, write_checked_json

CALIBRATION_JSON: Final = "calibration.json"


class Calibration(BaseModel):
    """`calibration.json`.

    Attributes:
        temperature: divides the logits; above 1, probabilities become less confident.
        ece_before: expected calibration error on held-out cases, 0 to 1, around the true structures.
        ece_after: the same with the temperature fitted on the other cases; equal for a temperature of 1.
        cases: number of held-out cases.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: Literal[1] = 1
    temperature: Annotated[float, Field(gt=0)]
    ece_before: float
    ece_after: float
    cases: int

    @property
    def helps(self) -> bool:
        """Whether the temperature lowers the calibration error; earlier versions stored others too."""
        return self.temperature != 1 and self.ece_after < self.ece_before

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a `calibration.json`.

        Raises:
            SegwrightError: missing, not JSON, or keys missing; named.
        """
        return parse_document(cls, path)

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        write_checked_json(path, self.model_dump(mode="json"))
