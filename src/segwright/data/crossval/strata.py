"""Read which labels occur in each case of a dataset, to spread them evenly over folds."""

from __future__ import annotations

from segwright.core.parallel import map_threads
from segwright.data.cases import Case
from segwright.data.dataset import Dataset
from segwright.data.images.image_io import read_label
from segwright.data.label_maps import distinct_values


def labels_of_cases(dataset: Dataset, *, workers: int | None = None) -> dict[str, set[int]]:
    """Return the foreground labels that occur in each case; reads every label map.

    Raises:
        ImageError: a label map cannot be read.
    """
    foreground, label_map = set(dataset.labels.foreground_labels), dataset.description.label_map

    def read(case: Case) -> set[int]:
        assert case.label is not None, "training cases have labels"
        return foreground & set(distinct_values(read_label(case.label, dataset.reader, label_map=label_map).array))

    found = map_threads(
        read, dataset.cases, workers=workers, describe=lambda case: case.identifier, title="labels of cases"
    )
    return dict(zip(dataset.identifiers, found, strict=True))
