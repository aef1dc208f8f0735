"""Check before any work that a plan fits a checkpoint of nnssl with which a training is to start."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from segwright.data.plan import Configuration

logger = getLogger(__name__)

_SCHEME = "ZScoreNormalization"


def require_same_pretraining(
    settings: Mapping[str, Any], configuration: Configuration, *, has_own_network: bool
) -> None:
    """Check that the plan's network has the encoder of the checkpoint; warn if images are normalised otherwise.

    Models of Segwright and nnU-Net are not checked: their tensors are compared one by one when the training starts.

    Args:
        settings: fields of `TrainConfig`.
        configuration: of the plan.
        has_own_network: whether a trainer class may build another network.

    Raises:
        ModelError: it has another encoder.
    """
    if settings.get("pretrained") is None:
        return
    from segwright.interop.nnssl import open_if_nnssl
    from segwright.networks.build import build_on_meta
    from segwright.training.config import TrainConfig
    from segwright.training.finetuning import find_checkpoint, require_same_encoder
    from segwright.training.network_setup import architecture_spec

    path = find_checkpoint(Path(settings["pretrained"]))
    checkpoint = open_if_nnssl(path) if path.suffix == ".pth" else None
    if checkpoint is None:
        return
    if not has_own_network and settings.get("network") is None:
        spec = architecture_spec(TrainConfig.from_mapping(settings), configuration)
        network = build_on_meta(spec, checkpoint.num_channels, 1)
        require_same_encoder(checkpoint, {name: tensor.shape for name, tensor in network.state_dict().items()})
    others = dict.fromkeys(scheme for scheme in configuration.normalization_schemes if scheme != _SCHEME)
    if others:
        logger.warning(
            "%s was pre-trained with %s, and the plan uses %s; 'segwright plan DATASET --like %s' plans for it",
            *(path, _SCHEME, ", ".join(others), path),
        )
