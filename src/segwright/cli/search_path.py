"""Remove the current folder from the search path, before anything that could be found there is imported.

Python puts it there for `python -m segwright`, and for an empty entry of PYTHONPATH. A module of a downloaded folder
that is the current one would run as soon as a library looks for one of its name. So this module, and the packages that
are imported before it (`segwright`, `segwright.cli`), import nothing that is not part of the interpreter itself.
"""

import os
import sys


def remove_current_folder(*, is_module: bool) -> None:
    """Remove the current folder from `sys.path` if Python added it; keep it if PYTHONPATH names it.

    Args:
        is_module: whether Python was started as `python -m segwright`.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was deleted, and Python added nothing
        return
    if is_module and not getattr(sys.flags, "safe_path", False) and sys.path[0] in ("", here):
        del sys.path[0]
    entries = (os.environ.get("PYTHONPATH") or "none").split(os.pathsep)
    if "" in entries and here not in [os.path.abspath(entry) for entry in entries if entry]:
        sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]
