"""Build hook: compile the CPU kernels where there is a C compiler; without them prediction on the CPU is slower.

The variable `SEGWRIGHT_KERNELS` decides what happens where a kernel cannot be compiled: `optional` (default) warns,
`required` fails, for a release. `none` compiles none and builds the wheel for all systems.
"""

from __future__ import annotations

import os
import platform
import runpy
import sys
import sysconfig
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE: Final = "SEGWRIGHT_KERNELS"
MODES: Final = ("optional", "required", "none")


class Kernels(BuildHookInterface[Any]):
    """Put the compiled kernels beside the module that loads them, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the libraries that the compiler supports; warn about the others, or fail."""
        mode = os.environ.get(VARIABLE, MODES[0])
        if mode not in MODES:
            self.app.abort(f"{VARIABLE}={mode}: expected one of {', '.join(MODES)}")
        if mode == "none":
            return
        if sys.platform == "win32" or platform.machine().lower() not in {"x86_64", "amd64"}:
            if mode == "required":
                self.app.abort(f"{VARIABLE}=required: the kernels need x86-64 and a Unix system; use none")
            return
        root, build = Path(self.root), runpy.run_path(str(Path(self.root) / "build_kernels.py"))
        compiled = []
        for name in build["LIBRARIES"]:
            if not (problem := build["compile_library"](root, name, root / build["CPU"])):
                compiled.append(str(build["CPU"] / name))
            elif mode == "required":
                self.app.abort(f"{VARIABLE}=required, but {name} cannot be compiled (float16 needs GCC 12): {problem}")
            else:
                self.app.display_warning(f"prediction on the CPU will be slower: {problem}")
        if compiled:
            build_data["artifacts"] += compiled
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
