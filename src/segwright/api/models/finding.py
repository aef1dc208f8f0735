"""Find models by path, by the name under which they are installed, or by their dataset."""

from __future__ import annotations

from pathlib import Path

from segwright.core.errors import ModelError, did_you_mean
from segwright.core.files.names import name_problem
from segwright.workspace import Workspace

INSTALLED_JSON = "installed.json"
"""In the folder of an installed model: where it is from."""


def find_model(model: Path | str, workspace: Workspace | None) -> Path:
    """Return the path of a model: as given, its folder if it is the name of an installed model, or a dataset's results.

    A file or folder of that name in the current folder comes first.

    Raises:
        ModelError: there is none of them, and models are installed, which are listed.
    """
    path, name = Path(model), str(model)
    if name_problem(name) or path.exists():
        return path
    place = Workspace.default() if workspace is None else workspace
    installed = place.installed_model(name)
    if (installed / INSTALLED_JSON).is_file():
        return installed
    try:
        return place.find_results(name)
    except ModelError:
        pass  # nor a dataset
    known = sorted(file.parent.name for file in place.models.glob(f"*/{INSTALLED_JSON}"))
    if not known:
        return path  # whoever opens it says what is missing
    raise ModelError(
        f"model '{name}': no such folder or zip file, and none is installed as that{did_you_mean(name, known)}"
    )
