"""Build hook: compiles `networks/cpu/native/*.c` for three kinds of processors, where there is a C compiler.

Without one a package is slower, no less.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/segwright/networks/cpu")
FLAGS = ("-O3", "-std=gnu11", "-mfma", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
LIBRARIES = {
    "_kernels_avx2.so": ("-mavx2",),
    "_kernels_avx512.so": _AVX512,
    "_kernels_avx512fp16.so": (*_AVX512, "-mavx512fp16"),
}
"""Each with what its processors have besides: what torch means by AVX2 and AVX512; AVX512-FP16 needs GCC 12."""


class Kernels(BuildHookInterface[Any]):
    """Puts the compiled kernels beside the module that loads them, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile what can be compiled."""
        if sys.platform == "win32" or platform.machine().lower() not in {"x86_64", "amd64"}:
            return
        made = [str(FOLDER / name) for name, abilities in LIBRARIES.items() if self._compile(name, abilities)]
        if made:
            build_data["artifacts"] += made
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def _compile(self, name: str, abilities: tuple[str, ...]) -> bool:
        """Compile one library; on failure say so and return False."""
        library = Path(self.root) / FOLDER / name
        sources = [str(source) for source in sorted((library.parent / "native").glob("*.c"))]
        library.unlink(missing_ok=True)  # or one of an older source would be loaded
        command = [*os.environ.get("CC", "cc").split(), *FLAGS, *abilities, *sources, "-lm", "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or b""
            self.app.display_warning(f"prediction on the CPU will be slower: {error} {detail.decode(errors='replace')}")
            return False
        return True
