"""Choose the normalisation of each channel, by its name and the cropped fraction (nnU-Net behaviour 5.10, 6.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from segwright.data.description import DatasetDescription
from segwright.data.fingerprint import Fingerprint
from segwright.planning.presets import MASK_BELOW
from segwright.planning.rationale import EVERYWHERE, Decision

_ZSCORE = "ZScoreNormalization"
_SCHEMES: Mapping[str, str] = MappingProxyType(
    {
        "ct": "CTNormalization",
        "nonorm": "NoNormalization",
        "zscore": _ZSCORE,
        "rescale_to_0_1": "RescaleTo01Normalization",
        "rgb_to_0_1": "RGBTo01Normalization",
    }
)
"""Scheme by channel name in lower case; all other names get z-scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """Normalisation scheme and use of the mask per channel, with the reasons.

    Attributes:
        schemes: nnU-Net's class name per channel, in the order of `channel_names` (nnU-Net behaviour 5.10).
        use_mask: Per channel, whether statistics use only voxels inside the non-zero mask.
        decisions: Entries of the rationale.
    """

    schemes: tuple[str, ...]
    use_mask: tuple[bool, ...]
    decisions: tuple[Decision, ...]


def choose_normalization(description: DatasetDescription, fingerprint: Fingerprint) -> Normalization:
    """Choose scheme and mask for each channel, by its name and the median share of an image that cropping keeps."""
    names = list(description.channel_names.values())
    schemes = tuple(_SCHEMES.get(name.casefold(), _ZSCORE) for name in names)
    kept = fingerprint.median_relative_size_after_cropping
    masked = kept < MASK_BELOW
    use_mask = tuple(masked and scheme == _ZSCORE for scheme in schemes)
    chosen = ", ".join(f"'{name}' uses {scheme}" for name, scheme in dict(zip(names, schemes, strict=True)).items())
    extent = f"cropping to the non-zero region keeps {kept:.2%} of the median image"
    return Normalization(
        schemes=schemes,
        use_mask=use_mask,
        decisions=(
            Decision(
                configuration=EVERYWHERE,
                decision="normalisation",
                value=list(schemes),
                reason=f"by channel name: {chosen}",
            ),
            Decision(
                configuration=EVERYWHERE,
                decision="normalise inside the mask",
                value=list(use_mask),
                reason=f"{extent}, below {MASK_BELOW:.0%}: z-scores use voxels inside it only"
                if masked
                else f"{extent}, not below {MASK_BELOW:.0%}: z-scores use all voxels",
            ),
        ),
    )
