"""Predict cases with the networks of a model in torch.

Legend: C channels, H heads, S spatial axes of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segwright.core.device import CPU
from segwright.core.parallel import fork_safe
from segwright.data.description import DatasetDescription
from segwright.data.labels import Labels
from segwright.data.plan import Configuration, Plan
from segwright.inference.case_predictor import CasePredictor, sides_in_patch
from segwright.inference.export.postprocessing import NO_POSTPROCESSING, PostProcessing
from segwright.inference.reliability.log_partition import log_partition
from segwright.inference.window.sliding import Window, window_planes
from segwright.inference.window.stitching import Planes
from segwright.inference.window.tile_planes import TileCount
from segwright.inference.window.tiling import DEFAULT_STEP, HALF_QUANTUM
from segwright.networks.build import move_to_device
from segwright.networks.cpu.library import describe_kernels
from segwright.preprocessing.pipeline import NetworkImage


class Predictor(CasePredictor):
    """The networks of one model, with all that is needed to predict a case; safe to use from several threads.

    Args:
        networks: one for each fold, deep supervision off; moved to `device` in its memory format.
        mirror_axes: spatial axes that mirroring may use; none switches it off.
        swap_sides: the networks were trained with left and right labels swapped in mirrored samples, along the plan's
            lateral axes.
        sum_dtype: dtype in which tiles are summed.
        quantum: weighted logits are rounded to multiples of it. The default reproduces nnU-Net's rounding at the border
            of the image, where its float16 sums have one or two digits; 0 switches rounding off.
        reuse: compute tiles of one value, such as air, once instead of one by one.
        description: the model's dataset.json; needed to predict from files alone.
        origin: the model's name, folds and hash, for `prediction.json`.
        postprocessing: is applied to label maps, not to probabilities.
        first: the first stage of a cascade.
    """

    window: Window

    def __init__(
        self,
        networks: Sequence[nn.Module],
        plan: Plan,
        configuration: Configuration,
        labels: Labels,
        *,
        device: torch.device,
        mirror_axes: Sequence[int] = (),
        swap_sides: bool = False,
        precision: str = "auto",
        step: float = DEFAULT_STEP,
        batch_tiles: int | None = None,
        sum_dtype: torch.dtype = torch.float32,
        quantum: float = HALF_QUANTUM,
        reuse: bool = True,
        description: DatasetDescription | None = None,
        origin: Mapping[str, Any] | None = None,
        postprocessing: PostProcessing = NO_POSTPROCESSING,
        first: CasePredictor | None = None,
    ) -> None:
        lateral_axes, heads = sides_in_patch(plan, configuration, labels) if swap_sides else ((), ())
        window = Window(
            patch_size=tuple(configuration.patch_size),
            device=device,
            mirror_axes=tuple(mirror_axes),
            lateral_axes=lateral_axes,
            mirrored_heads=heads,
            step=step,
            precision=precision,
            batch=batch_tiles,
            sum_dtype=sum_dtype,
            quantum=quantum if sum_dtype == torch.float32 else 0.0,
            reuse=reuse,
        )
        super().__init__(
            plan,
            configuration,
            labels,
            window=window,
            description=description,
            origin=origin,
            postprocessing=postprocessing,
            first=first,
        )
        self.networks = tuple(move_to_device(network, device, precision) for network in networks)

    @property
    def precision(self) -> str:
        """The precision that `precision` means on the device; see `precision.used_precision`."""
        return self.window.used_precision

    @property
    def device_name(self) -> str:
        """Where the networks run."""
        return str(self.window.device)

    def describe_backend(self) -> str:
        """Return which kernels compute on the CPU."""
        return describe_kernels() if self.window.device.type == CPU else ""

    @fork_safe
    def predict_preprocessed(self, image: NetworkImage) -> Tensor:
        """Return the networks' mean logits (H, *S), float32 on the CPU, of a preprocessed image (C, *S)."""
        logits = torch.empty((self.labels.num_heads, *image.shape[1:]))
        axis = self.axis_of(image)
        for planes in self.planes(image):
            logits.movedim(axis + 1, 1)[:, planes.start : planes.stop] = planes.logits
        return logits

    def planes(
        self, image: NetworkImage, *, count: TileCount | None = None, disagreement: bool = False
    ) -> Iterator[Planes]:
        """Predict the logits of a preprocessed image (C, *S) a few planes at a time; see `CasePredictor.planes`."""
        heads, axis = self.labels.num_heads, self.axis_of(image)
        convex_fn = log_partition(self.labels) if disagreement else None
        return window_planes(
            self.networks, image, heads, window=self.window, axis=axis, count=count, convex_fn=convex_fn
        )
