"""Build hook: compiles `networks/native/*.c` where there is a C compiler; without one a package is slower, no less."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/segwright/networks")
FLAGS = ("-O3", "-std=gnu11", "-mavx2", "-mfma", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread")


class Kernels(BuildHookInterface[Any]):
    """Puts the compiled kernels beside the module that loads them, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; on failure say so and go on."""
        if sys.platform == "win32" or platform.machine().lower() not in {"x86_64", "amd64"}:
            return
        library = Path(self.root) / FOLDER / "_kernels.so"
        sources = [str(source) for source in sorted((library.parent / "native").glob("*.c"))]
        library.unlink(missing_ok=True)  # or one of an older source would be loaded
        compiler = os.environ.get("CC", "cc").split()
        try:
            subprocess.run([*compiler, *FLAGS, *sources, "-lm", "-o", str(library)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or b""
            self.app.display_warning(f"prediction on the CPU will be slower: {error} {detail.decode(errors='replace')}")
            return
        build_data["artifacts"].append(str(FOLDER / library.name))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
