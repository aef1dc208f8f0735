"""Check what the wheels of a release contain: `python release/check_wheels.py [--platform TAG] WHEEL ...`.

Every file of `src/segwright` has to be in each wheel and no other, but for the compiled kernels: all of them in a wheel
for one platform, none in one for all. No file may name a folder of the machine that built it.
"""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from zipfile import ZipFile

ROOT: Final = Path(__file__).parents[1]
KERNELS: Final = frozenset(
    f"segwright/networks/cpu/{name}" for name in runpy.run_path(str(ROOT / "build_kernels.py"))["LIBRARIES"]
)
ESSENTIAL: Final = ("segwright/py.typed", "segwright/report/templates/")
"""A file, and a folder with any file: the sources could lack them, too."""
INFO: Final = re.compile(r"segwright-[^/]+\.dist-info/(METADATA|WHEEL|RECORD|entry_points\.txt|licenses/LICENSE)")
MACHINE_PATH: Final = re.compile(rb"/(?:home|root|tmp|Users|work|builds?|opt|project|host)/[\w./-]+")


def problems(wheel: Path, platform: str | None) -> Iterator[str]:
    """Yield what is wrong with a wheel; `platform` is the expected tag of one with kernels, if any is expected."""
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        found = {name: archive.read(name) for name in names}
    is_pure = wheel.name.endswith("-py3-none-any.whl")
    if not is_pure and platform and platform not in wheel.stem.split("-")[-1].split("."):
        yield f"is not for {platform}"
    if not is_pure and "linux" in wheel.stem and "manylinux" not in wheel.stem:
        yield "is for this machine's Linux, which PyPI refuses; use auditwheel repair"
    expected = {*sources(), *(() if is_pure else KERNELS)}
    content = {name for name in names if not INFO.fullmatch(name)}
    yield from (f"lacks {name}" for name in sorted(expected - content))
    yield from (f"has {name}, which does not belong there" for name in sorted(content - expected))
    yield from (f"has no {each}" for each in ESSENTIAL if not any(name.startswith(each) for name in names))
    for name in sorted(names):
        if name.endswith(".so") or INFO.fullmatch(name):
            yield from (f"{name} names {path.decode()}" for path in sorted({*MACHINE_PATH.findall(found[name])}))
    metadata = next(found[name].decode() for name in names if name.endswith("/METADATA"))
    yield from (
        f"METADATA has no {field}"
        for field in ("Author", "Classifier", "Keywords", "License-Expression", "Requires-Python")
        if f"\n{field}: " not in metadata
    )


def sources() -> set[str]:
    """Return the files of `src/segwright` that are neither compiled nor cached."""
    source = ROOT / "src"
    paths = (path for path in (source / "segwright").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(source).as_posix() for path in paths if path.suffix != ".so"}


def main() -> None:
    """Check all given wheels; name every problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--platform", help="tag that wheels with kernels must have, e.g. manylinux_2_28_x86_64")
    options = parser.parse_args()
    found = [f"{wheel.name} {each}" for wheel in options.wheels for each in problems(wheel, options.platform)]
    if found:
        sys.exit("\n".join(found))
    print(f"{', '.join(wheel.name for wheel in options.wheels)}: complete")


if __name__ == "__main__":
    main()
