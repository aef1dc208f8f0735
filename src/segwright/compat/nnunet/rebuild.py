"""Rebuild the network of a trainer file for prediction, from the copy of the file in the model folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import nn

from segwright.compat.nnunet import code_copy
from segwright.compat.nnunet.loading import LoadedTrainer, load_trainer_file
from segwright.compat.nnunet.network_hook import NetworkArguments, call_hook
from segwright.compat.nnunet.segmentation import keep_segmentation
from segwright.compat.nnunet.trainer import accepts, make_user, nnUNetTrainer, overrides
from segwright.core.device import CPU
from segwright.core.errors import ConfigError
from segwright.core.extensions.user_code import user_call
from segwright.data.plan import Plan
from segwright.networks.build import set_deep_supervision
from segwright.training.config import TrainConfig
from segwright.training.distributed.context import SINGLE

NETWORK_REFERENCE: Final = "segwright.compat.nnunet.rebuild:rebuild_network"
"""How a checkpoint names the network of a trainer file."""


class PredictionHost:
    """What a trainer file's class needs to be made for prediction; its other hooks are not called."""

    def __init__(self, model_folder: Path) -> None:
        self.output_folder = model_folder / "fold_0"
        self.log_file = self.output_folder / "training.log"
        self.preprocessed_folder: Path | None = None
        self.config = TrainConfig()
        self.distributed = SINGLE
        self.torch_device = torch.device(CPU)
        self.model = PredictionModel()
        self.data = SimpleNamespace()
        self.replaced: dict[str, tuple[Any, Any]] = {}

    def grad_scaler(self) -> None:
        """Return None: there are no gradients."""

    def log_line(self, *parts: object, console: bool, timestamp: bool) -> None:
        """Drop a line of the log."""

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: `rebuild_network` switches it off."""


class PredictionModel:
    """Lets an `initialize` of a trainer file build its network, and nothing that only a training needs."""

    def __init__(self) -> None:
        self.make_network: Callable[[], nn.Module]
        self.user: nnUNetTrainer

    def initialize(self) -> None:
        """Build the network alone; a file may then add to it."""
        self.user.network = self.make_network()
        self.user.optimizer, self.user.lr_scheduler = self.configure_optimizers()
        self.user.loss = self.build_loss()
        self.user.was_initialized = True

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        """Return an optimizer that is not used."""
        return torch.optim.SGD(self.user.network.parameters(), lr=0.0), None

    def build_loss(self) -> nn.Module:
        """Return a loss that is not used."""
        return nn.Identity()

    def deep_supervision_scales(self) -> None:
        """Return None: there is one output."""


def network_kwargs(
    loaded: LoadedTrainer, plan: Plan, configuration: str, dataset_json: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a checkpoint stores to rebuild the network."""
    return {
        "model_folder": None,
        "file": code_copy.main_file(loaded),
        "sha256": code_copy.code_hashes(loaded),
        "class_name": loaded.class_name,
        "plans": plan.to_json(),
        "configuration": configuration,
        "dataset_json": dict(dataset_json),
    }


def rebuild_network(
    num_input_channels: int,
    num_output_channels: int,
    *,
    patch_size: tuple[int, ...],
    deep_supervision: bool,
    model_folder: str | None = None,
    file: str,
    sha256: Mapping[str, str],
    class_name: str,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
) -> nn.Module:
    """Build the network with the copy of the trainer file in a model folder, whose code runs.

    Args:
        num_input_channels: of the network.
        num_output_channels: heads.
        patch_size: of the network; also in the plans.
        deep_supervision: whether to return several resolutions.
        model_folder: where the copy is.
        file: its path below the folder of the code.
        sha256: hash of each file of the code.
        class_name: of the trainer.
        plans: the plans document.
        configuration: its name.
        dataset_json: the document.

    Raises:
        ModelError: a file is missing or was changed.
        SegwrightError: the file's code fails.
    """
    if model_folder is None:
        raise ConfigError(f"the network of {class_name} can only be built from its model folder; use load_model")
    folder = Path(model_folder)
    loaded = load_trainer_file(code_copy.checked_code(folder, sha256, file), class_name)
    cls: type[nnUNetTrainer] = loaded.cls
    host = PredictionHost(folder)
    user = make_user(cls, host)
    arguments: dict[str, Any] = {"plans": copy.deepcopy(plans), "configuration": configuration, "fold": 0}
    arguments |= {"dataset_json": copy.deepcopy(dataset_json), "device": torch.device(CPU)}
    if accepts(cls, "unpack_dataset"):
        arguments["unpack_dataset"] = False
    with loaded.modules, user_call(cls, f"trainer {class_name}"):
        user.__init__(**arguments)  # type: ignore[misc]
        values = NetworkArguments(
            plans_manager=user.plans_manager,
            configuration_manager=user.configuration_manager,
            dataset_json=user.dataset_json,
            num_input_channels=num_input_channels,
            num_output_channels=num_output_channels,
            enable_deep_supervision=deep_supervision,
        )
        host.model.user = user
        host.model.make_network = partial(call_hook, user.build_network_architecture, values, where=class_name)
        user.num_input_channels = num_input_channels
        user.enable_deep_supervision = deep_supervision
        if overrides(cls, "initialize"):
            user.initialize()
        else:
            user.network = host.model.make_network()
        network: nn.Module = user.network
        set_deep_supervision(network, deep_supervision)
        user.set_deep_supervision_enabled(deep_supervision)
    keep_segmentation(network, num_output_channels)
    return network
