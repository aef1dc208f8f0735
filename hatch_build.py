"""Build hook: compiles the CPU kernels where there is a C compiler; without them prediction on the CPU is slower."""

from __future__ import annotations

import platform
import runpy
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Kernels(BuildHookInterface[Any]):
    """Put the compiled kernels beside the module that loads them, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the libraries that the compiler supports; warn about the others."""
        if sys.platform == "win32" or platform.machine().lower() not in {"x86_64", "amd64"}:
            return
        root, build = Path(self.root), runpy.run_path(str(Path(self.root) / "build_kernels.py"))
        compiled = []
        for name in build["LIBRARIES"]:
            if problem := build["compile_library"](root, name, root / build["CPU"]):
                self.app.display_warning(f"prediction on the CPU will be slower: {problem}")
            else:
                compiled.append(str(build["CPU"] / name))
        if compiled:
            build_data["artifacts"] += compiled
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
