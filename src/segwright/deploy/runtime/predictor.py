"""Predict cases with the networks of a bundle in onnxruntime.

Legend: B samples, C channels, H heads, P spatial axes of a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from segwright.core.errors import ModelError, did_you_mean
from segwright.core.parallel import available_cpus
from segwright.data.description import parse_description
from segwright.data.labels import Labels
from segwright.data.plan import Plan
from segwright.deploy.runtime.bundle import INPUT, OUTPUT, BundledModel
from segwright.inference.case_predictor import CasePredictor, sides_in_patch
from segwright.inference.reliability.model import ReliabilityModel
from segwright.inference.window.stitching import Planes
from segwright.inference.window.tile_planes import TileCount, TileSettings, tile_planes
from segwright.inference.window.tiling import HALF_QUANTUM
from segwright.preprocessing import pipeline

CPU_PROVIDER: Final = "CPUExecutionProvider"
"""onnxruntime's name of what computes on the CPU."""

_BATCH_VOXELS = 2**18
"""Voxels in one forward pass up to which small patches are batched; larger batches only cost memory."""

Floats = npt.NDArray[np.float32]


class OnnxPredictor(CasePredictor):
    """The networks of one model of a bundle, with all that is needed to predict a case.

    Args:
        sessions: of onnxruntime, one for each fold.
        model: the entry of `bundle.json`.
        where: file and key of the entry, for messages.
        provider: onnxruntime's name of what computes the networks.
        reuse: compute tiles of one value, such as air, once instead of one by one.
        first: the first stage of a cascade.

    Raises:
        SegwrightError: the entry is damaged.
    """

    library = "numpy"

    def __init__(
        self,
        sessions: Sequence[Any],
        model: BundledModel,
        *,
        where: Path,
        provider: str = CPU_PROVIDER,
        reuse: bool = True,
        first: CasePredictor | None = None,
    ) -> None:
        plan = Plan.from_json(model.plan, where=f"{where}, plan")
        description = parse_description(dict(model.dataset), where)
        labels, configuration = Labels.from_description(description), plan.configuration(model.configuration)
        if model.heads != tuple(labels.names.values()):
            raise ModelError(f"{where}: heads are {[*model.heads]}, the labels need {[*labels.names.values()]}")
        lateral_axes, heads = sides_in_patch(plan, configuration, labels) if model.swap_sides else ((), ())
        window = TileSettings(
            patch_size=tuple(configuration.patch_size),
            mirror_axes=model.mirror_axes,
            lateral_axes=lateral_axes,
            mirrored_heads=heads,
            step=model.step,
            quantum=HALF_QUANTUM,
            reuse=reuse,
        )
        super().__init__(
            plan, configuration, labels, window=window, description=description, origin=model.origin, first=first
        )
        self.sessions = tuple(sessions)
        self.provider = provider
        self.reliability = ReliabilityModel(training=model.training_range)

    @property
    def precision(self) -> str:
        """The precision of the networks in a bundle."""
        return "fp32"

    @property
    def device_name(self) -> str:
        """onnxruntime and its provider."""
        return f"onnxruntime:{self.provider}"

    def describe_backend(self) -> str:
        """Return onnxruntime's version and provider."""
        return f"onnxruntime {version('onnxruntime')}, {self.provider}"

    def planes(
        self, image: pipeline.NetworkImage, *, count: TileCount | None = None, disagreement: bool = False
    ) -> Iterator[Planes]:
        """Predict the logits of a preprocessed image (C, *S) a few planes at a time; see `CasePredictor.planes`."""
        network = _OnnxTiles(self.sessions, self.labels, self.window, disagreement=disagreement)
        axis, heads = self.axis_of(image), self.labels.num_heads
        return tile_planes(network, image, heads, settings=self.window, axis=axis, count=count)  # type: ignore[arg-type]


class _OnnxTiles:
    """Computes the logits of tiles with sessions of onnxruntime; see `TileNetwork`."""

    def __init__(self, sessions: Sequence[Any], labels: Labels, window: TileSettings, *, disagreement: bool) -> None:
        self._sessions = sessions
        self._labels = labels
        self._window = window
        self._disagreement = disagreement
        self._batch = max(1, _BATCH_VOXELS // prod(window.patch_size))
        self.tiles_at_once = max(1, self._batch // len(window.flips))

    def logits(self, tile_images: Sequence[Floats]) -> Sequence[Floats]:
        """Return the mean logits of each tile; with disagreement a last head has the mean of `log_partition`."""
        tiles, flips, heads = np.stack(tile_images), self._window.flips, self._labels.num_heads
        total = np.zeros((len(tiles), heads + self._disagreement, *self._window.patch_size), dtype=np.float32)
        at_once = max(1, self._batch // len(tiles))
        for first in range(0, len(flips), at_once):
            group = flips[first : first + at_once]
            batch = np.concatenate([_flip(tiles, flip) for flip in group])
            for session in self._sessions:
                [found] = session.run([OUTPUT], {INPUT: batch})
                for flip, part in zip(group, np.split(found, len(group)), strict=True):
                    order = self._window.heads_of(flip)
                    for head in range(heads):
                        total[:, head] += _flip(part[:, head if order is None else order[head]], flip, lead=1)
                    if self._disagreement:
                        total[:, heads] += _flip(log_partition(part, self._labels), flip, lead=1)
        total /= len(flips) * len(self._sessions)
        return list(total)

    def weights(self, weights: Floats) -> Floats:
        """Return the weights."""
        return weights

    def finish(self, logits: Floats) -> Floats:
        """Check averaged logits and turn the mean of `log_partition` into the disagreement."""
        if not np.isfinite(logits).all():
            raise ModelError("the network gives NaN or infinite logits; its weights are damaged, export it again")
        if self._disagreement:
            heads = self._labels.num_heads
            gap = logits[heads] - log_partition(logits[None, :heads], self._labels)[0]
            np.maximum(gap, 0, out=logits[heads])
        return logits


def log_partition(logits: Floats, labels: Labels) -> Floats:
    """Return G, see `uncertainty`, of logits (B, H, *P): (B, *P)."""
    if labels.has_regions:
        found = np.zeros((len(logits), *logits.shape[2:]), dtype=np.float32)
        for head in range(logits.shape[1]):
            found += np.logaddexp(logits[:, head], np.float32(0))  # softplus
        return found
    largest = logits.max(axis=1)
    powers = np.zeros_like(largest)
    for head in range(logits.shape[1]):
        powers += np.exp(logits[:, head] - largest)
    result: Floats = np.log(powers, out=powers)
    result += largest
    return result


def open_session(file: Path, *, provider: str = CPU_PROVIDER, threads: int | None = None) -> Any:
    """Open a network.

    Args:
        file: the ONNX file.
        provider: onnxruntime's name of what computes it.
        threads: on the CPU; all available ones by default.

    Raises:
        ModelError: onnxruntime cannot read the file or lacks the provider.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ModelError(f"onnxruntime has no provider '{provider}'{did_you_mean(provider, available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=[provider])
    except Exception as error:  # onnxruntime's have no common class
        raise ModelError(f"{file}: onnxruntime cannot read the network ({error}); export the model again") from error


def _flip(array: Floats, flip: Sequence[int], *, lead: int = 2) -> Floats:
    return np.flip(array, tuple(axis + lead for axis in flip)) if flip else array
