"""Compile the kernels in `src/segwright/networks/cpu/native` for three kinds of processors.

`hatch_build.py` does this when the package is installed. By hand: `python build_kernels.py [--sanitize] FOLDER`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Final

CPU: Final = Path("src/segwright/networks/cpu")
OPTIMISED: Final = ("-O3",)
SANITIZED: Final = ("-O2", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_FLAGS: Final = ("-std=gnu11", "-mfma", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread")
_AVX512: Final = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
LIBRARIES: Final = MappingProxyType(
    {
        "_kernels_avx2.so": ("-mavx2",),
        "_kernels_avx512.so": _AVX512,
        "_kernels_avx512fp16.so": (*_AVX512, "-mavx512fp16"),
    }
)
"""Compiler flags of each library, for what torch means by AVX2 and AVX512; AVX512-FP16 needs GCC 12."""


def compile_library(root: Path, name: str, folder: Path, flags: tuple[str, ...] = OPTIMISED) -> str:
    """Compile one library to `folder`.

    Args:
        root: of the project.
        name: one of LIBRARIES.
        folder: where the library goes.
        flags: for the compiler, OPTIMISED or SANITIZED.

    Returns:
        What went wrong; empty on success.
    """
    library, native = folder / name, root / CPU / "native"
    version = runpy.run_path(str(root / CPU / "sources.py"))["sources_hash"](native)
    library.unlink(missing_ok=True)  # or one of older sources would stay after an error
    command = [
        *os.environ.get("CC", "cc").split(),
        *flags,
        *_FLAGS,
        *LIBRARIES[name],
        f'-DSEGWRIGHT_SOURCES_HASH="{version}"',
        *(str(source) for source in sorted(native.glob("*.c"))),
        "-lm",
        "-o",
        str(library),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or b""
        return f"{error} {detail.decode(errors='replace')}"
    return ""


def main() -> None:
    """Compile all libraries to a folder."""
    *options, folder = sys.argv[1:]
    flags = SANITIZED if "--sanitize" in options else OPTIMISED
    for name in LIBRARIES:
        if problem := compile_library(Path(__file__).parent, name, Path(folder), flags):
            sys.exit(f"{name}: {problem}")


if __name__ == "__main__":
    main()
