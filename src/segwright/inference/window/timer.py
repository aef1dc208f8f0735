"""Measure how long the network takes for a case, apart from the export of its planes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from segwright.inference.window.stitching import Planes
from segwright.inference.window.tile_planes import TileCount


@dataclass(slots=True)
class Timer:
    """Tile counts of a case, and the seconds in which its planes were predicted."""

    tiles: TileCount = field(default_factory=TileCount)
    seconds: float = 0.0

    def watch(self, planes: Iterable[Planes]) -> Iterator[Planes]:
        """Yield `planes`, and add the time until each is available."""
        waiting = iter(planes)
        while True:
            start = time.perf_counter()
            part = next(waiting, None)
            self.seconds += time.perf_counter() - start
            if part is None:
                return
            yield part
            del part  # or its memory would be held during the next pass
