"""Build network, optimizer, scheduler and loss of a training with a trainer file."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from torch import nn
from torch.optim import Optimizer

from segwright.compat.nnunet.hooks.attributes import MODEL_SETTINGS, SettingsInUse, require_own_datasets
from segwright.compat.nnunet.hooks.rates import FileRates, RunScheduler
from segwright.compat.nnunet.names.losses import (
    DC_and_BCE_loss,
    DC_and_CE_loss,
    DeepSupervisionWrapper,
    MemoryEfficientSoftDiceLoss,
)
from segwright.compat.nnunet.segmentation import require_segmentation
from segwright.compat.nnunet.trainer import nnUNetTrainer, overrides
from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.user_code import UserCodeError, source_location
from segwright.networks.build import move_to_device
from segwright.networks.logits import logits_only
from segwright.training import defaults, network_setup
from segwright.training.loading.targets import Scales
from segwright.training.losses.builtin import build_loss, deep_supervision_weights
from segwright.training.optim import ema
from segwright.training.optim.optimizers import build_optimizer
from segwright.training.optim.rates import LearningRates
from segwright.training.trainer import Trainer

SMOOTH: Final = 1e-5
"""Of the Dice in nnU-Net's default losses (nnU-Net behaviour 8.6)."""

OUTPUT_HOOKS: Final = ("_get_deep_supervision_scales", "_build_loss", "train_step", "validation_step")
"""Hooks that expect one target for each resolution of the plan."""


def has_own_steps(cls: type[nnUNetTrainer]) -> bool:
    """Return whether a trainer file updates the weights itself."""
    return overrides(cls, "train_step") or overrides(cls, "run_training")


class ModelHooks:
    """What the base class does to build network, optimizer, scheduler and loss.

    Args:
        run: the training.
        user: the object of the trainer file.
        settings: remembers which attributes are in use.
    """

    def __init__(self, run: Trainer, user: nnUNetTrainer, settings: SettingsInUse) -> None:
        self._run = run
        self._user = user
        self._cls = type(user)
        self._settings = settings

    def initialize(self) -> None:
        """Build them with the file's hooks."""
        run, user = self._run, self._user
        if user.was_initialized:
            raise ConfigError("the trainer is already initialized; create a new one")
        run.config = run._with_knobs()  # a file may set them before it calls the base
        user.num_input_channels = run.num_input_channels
        network = run._build_network()
        if run.config.pretrained is not None and not run.is_resumed:
            run.notes += (*run._load_pretrained(network, run.config.pretrained),)
        user.network = move_to_device(network, run.device, run.config.precision, fused_norm=run.config.fused_norm)
        user.optimizer, user.lr_scheduler = self.optimizers_of(user.configure_optimizers())
        user.loss = user._build_loss()
        user.was_initialized = True
        self._settings.use(MODEL_SETTINGS, "the model")

    def complete(self) -> None:
        """Check what was built, and add what our loop needs.

        Raises:
            UserCodeError: network, optimizer or loss is missing.
            ConfigError: an attribute would have no effect.
        """
        run, user = self._run, self._user
        require_own_datasets(user)
        for name, kind in (("network", nn.Module), ("optimizer", Optimizer)):
            if not isinstance(getattr(user, name), kind):
                raise UserCodeError(
                    f"{source_location(user.initialize)}: initialize of {self._cls.__name__} left {name} = "
                    f"{type(getattr(user, name)).__name__}; it must set a {kind.__name__}"
                )
        if not callable(user.loss):
            raise UserCodeError(
                f"{source_location(user._build_loss)}: _build_loss of {self._cls.__name__} returned "
                f"{type(user.loss).__name__}; it must return what is called as loss(output, target)"
            )
        if overrides(self._cls, "build_network_architecture") or overrides(self._cls, "initialize"):
            self._require_segmentation()
        run.scales = self.scales()
        run.distributed.prepare(user.network, user.optimizer)
        self.update_rates()
        run.weight_ema = ema.attach(user.network, user.optimizer, run.config.ema_weights)
        if user.grad_scaler is None and not has_own_steps(self._cls):
            num_processes = run.distributed.world_size
            user.grad_scaler = defaults.make_grad_scaler(run.config, run.device, num_processes=num_processes)
        user.was_initialized = True
        run.notes += (*self._settings.replaced_lines(), *self._settings.late_lines())

    def _require_segmentation(self) -> None:
        """Check that the file's network can predict, unless it validates itself.

        Raises:
            ModelError: it cannot.
        """
        run, user = self._run, self._user
        if overrides(self._cls, "perform_actual_validation"):
            return
        user.set_deep_supervision_enabled(False)
        was_training = user.network.training
        user.network.eval()
        try:
            shape = (1, run.num_input_channels, *run.configuration.patch_size)
            require_segmentation(user.network, shape, run.labels.num_heads, where=self._cls.__name__)
        finally:
            user.network.train(was_training)
            user.set_deep_supervision_enabled(user.enable_deep_supervision)

    def update_rates(self) -> None:
        """Tell our loop which optimizer and scheduler the file uses now; it may exchange them."""
        optimizer, scheduler = self._user.optimizer, self._user.lr_scheduler
        if isinstance(scheduler, RunScheduler):
            self._run.rates = LearningRates(optimizer)
        else:
            self._run.rates = FileRates(optimizer, scheduler)
        self._rates_of = (optimizer, scheduler)

    def require_current_rates(self) -> None:
        """Update the rates if the file has exchanged optimizer or scheduler."""
        if self._rates_of != (self._user.optimizer, self._user.lr_scheduler):
            self.update_rates()

    def optimizers_of(self, made: Any) -> tuple[Optimizer, Any]:
        """Return optimizer and scheduler of what `configure_optimizers` returned: a pair, or an optimizer alone.

        Raises:
            UserCodeError: it is neither.
        """
        if isinstance(made, Optimizer):
            return made, None
        if isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[0], Optimizer):
            return made[0], made[1]
        hook = self._user.configure_optimizers
        shown = type(made).__name__
        if isinstance(made, tuple | list):
            shown = f"({', '.join(type(each).__name__ for each in made)})"
        raise UserCodeError(
            f"{source_location(hook)}: configure_optimizers returned {shown}, expected (optimizer, lr_scheduler); "
            "several optimizers are not supported, since a resumed training could not restore them"
        )

    def configure_optimizers(self) -> tuple[Optimizer, RunScheduler]:
        """Return the optimizer of the settings, and the schedule as a scheduler."""
        return build_optimizer(self._user.network, self._run.config), RunScheduler(self._run)

    def build_loss(self) -> Any:
        """Return nnU-Net's default loss; our own for regions that no hook adds to, a set `loss` and class weights."""
        run, config = self._run, self._run.config
        self._run.scales = self.scales()
        num_outputs = len(run.scales) if len(run.scales) > 1 else None
        is_set = config.loss is not None or config.class_weights is not None
        if is_set or (run.labels.has_regions and not overrides(self._cls, "_build_loss")):
            return build_loss(
                run.labels,
                batch_dice=bool(config.batch_dice),
                num_outputs=num_outputs,
                reference=config.loss,
                class_weights=config.class_weights,
                reduce=run.distributed.reduce,
            )
        loss = self._default_loss()
        if num_outputs is None:
            return loss
        return DeepSupervisionWrapper(loss, deep_supervision_weights(num_outputs))

    def _default_loss(self) -> nn.Module:
        labels, is_ddp = self._run.labels, self._user.is_ddp
        dice = {"batch_dice": self._batch_dice, "do_bg": labels.has_regions, "smooth": SMOOTH, "ddp": is_ddp}
        if labels.has_regions:
            has_ignore = labels.ignore_label is not None
            return DC_and_BCE_loss({}, dice, use_ignore_label=has_ignore, dice_class=MemoryEfficientSoftDiceLoss)
        ignore = labels.ignore_label
        return DC_and_CE_loss(dice, {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)

    @property
    def _batch_dice(self) -> bool:
        planned = bool(self._user.configuration_manager.batch_dice)
        return planned if self._run.config.batch_dice is None else bool(self._run.config.batch_dice)

    def deep_supervision_scales(self) -> list[list[float]] | None:
        """Return the sizes of the plan's resolutions but the lowest, relative to the patch; None without."""
        if not self._user.enable_deep_supervision:
            return None
        strides = np.vstack(self._user.configuration_manager.pool_op_kernel_sizes)
        return [[float(value) for value in row] for row in 1 / np.cumprod(strides, axis=0)][:-1]

    def scales(self) -> Scales:
        """Return the relative sizes of the targets: nnU-Net's if a hook expects them, else those of the outputs."""
        run, user = self._run, self._user
        planned = user._get_deep_supervision_scales()
        expected = [tuple(scale) for scale in planned or [[1.0] * run.configuration.dims]]
        if any(overrides(self._cls, hook) for hook in OUTPUT_HOOKS):
            return expected
        heads, patch_size = run.labels.num_heads, run.configuration.patch_size
        try:
            with logits_only(user.network, run._own_logits_of):
                return network_setup.output_scales(user.network, run.num_input_channels, patch_size, heads)
        except ModelError:
            if not overrides(self._cls, "build_network_architecture") and not overrides(self._cls, "initialize"):
                raise
            return expected
