"""Plain inverse of preprocessing on whole arrays, to compare the export in slabs with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from segwright.core.boxes import uncrop
from segwright.data.preprocessed.provenance import Provenance


def undo_labels(labels: npt.NDArray[Any], provenance: Provenance) -> npt.NDArray[Any]:
    """Put a label map on the cropped grid (*S) back into the case's own grid, in the reader's axis order."""
    whole = uncrop(labels, provenance.box, provenance.shape_before_cropping)
    return np.ascontiguousarray(whole.transpose(provenance.transpose_backward))


def undo_probabilities(
    probabilities: npt.NDArray[np.float32], provenance: Provenance, *, has_regions: bool
) -> npt.NDArray[np.float32]:
    """Put probabilities on the cropped grid (heads, *S) back into the case's own grid (nnU-Net behaviour 4.5).

    Outside the crop everything is 0, but the background head is 1 where there is one.
    """
    whole = uncrop(probabilities, provenance.box, provenance.shape_before_cropping)
    if not has_regions:
        whole[0] = uncrop(probabilities[0], provenance.box, provenance.shape_before_cropping, fill=1)
    return np.ascontiguousarray(whole.transpose((0, *(axis + 1 for axis in provenance.transpose_backward))))
