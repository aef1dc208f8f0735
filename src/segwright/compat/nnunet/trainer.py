"""The class `nnUNetTrainer` that trainer files derive from: nnU-Net's attributes and hooks, on our training loop.

A hook that a file overrides calls the base's with `super()`; what it does then is in `hooks`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import nn

from segwright.compat.nnunet import network_hook
from segwright.compat.nnunet.names.logging import MetaLogger
from segwright.compat.nnunet.names.plans import ConfigurationManager, PlansManager
from segwright.compat.nnunet.unreached import require_assignable
from segwright.core.errors import ConfigError
from segwright.data.labels import parse_label_map

HOST: Final = "_segwright"
"""Attribute that connects the object of a trainer file with the training that runs it; set before its `__init__`."""

VARIANT_SETTINGS: Final = "_segwright_settings"
"""Attribute of a class: settings of our trainer that a published variant stands for."""

LOADING_SINCE_2_6: Final = frozenset({"nnUNetDataLoader", "infer_dataset_class", "nnUNetDatasetBlosc2"})
"""Names about loaders and datasets that came with 2.6."""

Step = dict[str, Any]
"""What a training or validation step returns: numpy values by name."""


class nnUNetTrainer:
    """The base class of trainer files; made by `segwright train --nnunet-trainer`, never directly.

    Args:
        plans: the plans document.
        configuration: its name.
        fold: number or "all".
        dataset_json: the document.
        device: of the network.
        unpack_dataset: of nnU-Net 2.0 to 2.5, without effect.
    """

    _segwright: Any
    _segwright_settings: ClassVar[Mapping[str, Any]] = {}

    preprocessed_dataset_folder_base: str | None
    preprocessed_dataset_folder: str | None
    output_folder_base: str
    output_folder: str
    is_cascaded: bool
    folder_with_segs_from_previous_stage: str | None
    initial_lr: float
    weight_decay: float
    oversample_foreground_percent: float
    probabilistic_oversampling: bool
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    num_epochs: int
    current_epoch: int
    enable_deep_supervision: bool
    save_every: int
    disable_checkpointing: bool
    batch_size: int | None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        *arguments: Any,
        unpack_dataset: bool = True,
        device: torch.device | None = None,
    ) -> None:
        host = host_of(self)
        early = [*_class_attributes(type(self)).items(), *vars(self).items()]
        for argument in arguments:  # up to 2.5 `unpack_dataset, device`, later `device` alone
            if isinstance(argument, torch.device):
                device = argument
            elif isinstance(argument, bool):
                unpack_dataset = argument
        self.is_ddp = host.distributed.world_size > 1
        self.local_rank = host.distributed.rank
        self.device = device or host.torch_device
        known: dict[str, Any] = {
            "plans": plans,
            "configuration": configuration,
            "fold": fold,
            "dataset_json": dataset_json,
        }
        known |= {"unpack_dataset": unpack_dataset, "device": self.device}
        self.my_init_kwargs = _init_kwargs(type(self), known)
        self.plans_manager = PlansManager(plans, label_map=parse_label_map(dataset_json.get("label_map")))
        self.configuration_manager = self.plans_manager.get_configuration(configuration)
        self.configuration_name = configuration
        self.dataset_json = dataset_json
        self.fold = fold
        self.unpack_dataset = unpack_dataset
        vars(self).update(folders_of(host, self.configuration_manager, configuration))
        self.label_manager = self.plans_manager.get_label_manager(dataset_json)
        _set_hyperparameters(self, host)
        self.num_input_channels: int | None = None
        self.network: Any = None
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        self.grad_scaler: Any = host.grad_scaler()
        self.loss: Any = None
        self.dataset_class: Any = None
        self.dataloader_train: Any = None
        self.dataloader_val: Any = None
        self.logger: Any = MetaLogger(self.output_folder)
        self.log_file = str(host.log_file)
        self._best_ema: float | None = None
        self.inference_allowed_mirroring_axes: tuple[int, ...] | None = None
        self.was_initialized = False
        nnUNetTrainer._set_batch_size_and_oversample(self)  # a file's own is called when its attributes are set
        now = vars(self)
        set_early = [(name, value) for name, value in early if value is not None and name in now]
        host.replaced = {name: (value, now[name]) for name, value in set_early if differ(value, now[name])}

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute; refuse to replace a hook that is looked up on the class."""
        require_assignable(self, name, nnUNetTrainer)
        super().__setattr__(name, value)

    # Building

    def initialize(self) -> None:
        """Build network, optimizer, scheduler and loss."""
        host_of(self).model.initialize()

    def _set_batch_size_and_oversample(self) -> None:
        """Set `batch_size` to the plan's, unless it was set."""
        if self.batch_size is None:
            self.batch_size = self.configuration_manager.batch_size

    @staticmethod
    def build_network_architecture(*args: Any, **kwargs: Any) -> nn.Module:
        """Return the plan's network; takes the arguments of any version's hook."""
        return network_hook.build_planned(args, kwargs)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the scheduler of our trainer's settings."""
        return host_of(self).model.configure_optimizers()

    def _build_loss(self) -> Any:
        """Return the loss: Dice and cross entropy, weighted over the resolutions of deep supervision."""
        return host_of(self).model.build_loss()

    def _get_deep_supervision_scales(self) -> Any:
        """Return the relative size of each output per axis, the highest resolution first; None without."""
        return host_of(self).model.deep_supervision_scales()

    def _do_i_compile(self) -> bool:
        """Return False: networks are not compiled."""
        return False

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch between several outputs and one."""
        host_of(self).set_deep_supervision_enabled(enabled)

    # Data

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:
        """Return rotation range, whether to rotate in the plane only, size to read, and mirrored axes."""
        return host_of(self).data.configure_augmentation()

    def do_split(self) -> Any:
        """Return the training and validation cases of the fold."""
        return host_of(self).data.split_cases()

    def get_tr_and_val_datasets(self) -> Any:
        """Return the datasets of training and validation cases."""
        return host_of(self).data.datasets()

    def get_dataloaders(self) -> Any:
        """Return endless iterators over training and validation batches."""
        return host_of(self).data.dataloaders()

    def get_plain_dataloaders(self, initial_patch_size: Any, dim: int) -> Any:
        """Return the loaders of nnU-Net 2.0 to 2.4 without augmentation."""
        return host_of(self).data.plain_dataloaders(initial_patch_size, dim)

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's transforms; needs batchgeneratorsv2."""
        from segwright.compat.nnunet.default_transforms import training_transforms

        return training_transforms(*args, **kwargs)

    @staticmethod
    def get_validation_transforms(*args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's transforms of validation batches; needs batchgeneratorsv2."""
        from segwright.compat.nnunet.default_transforms import validation_transforms

        return validation_transforms(*args, **kwargs)

    # The loop

    def run_training(self) -> None:
        """Train to the end from the current epoch."""
        host_of(self).run_training()

    def on_train_start(self) -> None:
        """Open the data and write the files that describe the run."""
        host_of(self).on_train_start()

    def on_train_end(self) -> None:
        """Write the final checkpoint."""
        host_of(self).on_train_end()

    def on_epoch_start(self) -> None:
        """Log the time."""
        host_of(self).on_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Set training mode, and step the scheduler."""
        host_of(self).on_train_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> Any:
        """Update the weights with one batch, and return its `loss`."""
        return host_of(self).train_step(batch)

    def on_train_epoch_end(self, train_outputs: list[Step]) -> None:
        """Log the mean loss."""
        host_of(self).on_train_epoch_end(train_outputs)

    def on_validation_epoch_start(self) -> None:
        """Set evaluation mode."""
        host_of(self).on_validation_epoch_start()

    def validation_step(self, batch: dict[str, Any]) -> Any:
        """Return `loss`, `tp_hard`, `fp_hard` and `fn_hard` of one batch, without background."""
        return host_of(self).validation_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[Step]) -> None:
        """Log validation loss and pseudo Dice."""
        host_of(self).on_validation_epoch_end(val_outputs)

    def on_epoch_end(self) -> None:
        """Log the epoch, save checkpoints that are due, and go to the next epoch."""
        host_of(self).on_epoch_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict and score the validation cases."""
        host_of(self).perform_actual_validation(save_probabilities=save_probabilities)

    # Checkpoints and output

    def save_checkpoint(self, filename: str | Path) -> None:
        """Save the training; our own format under nnU-Net's three names, else a torch file."""
        host_of(self).save_checkpoint(Path(filename))

    def load_checkpoint(self, filename_or_checkpoint: str | Path | Mapping[str, Any]) -> None:
        """Load a checkpoint: a file of nnU-Net's or its dict, or our own of that name."""
        host_of(self).load_checkpoint(filename_or_checkpoint)

    def print_to_log_file(self, *args: object, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write a line to the log."""
        host_of(self).log_line(*args, console=also_print_to_console, timestamp=add_timestamp)

    def print_plans(self) -> None:
        """Do nothing: the plan is written to the model folder."""

    def plot_network_architecture(self) -> None:
        """Draw the network, if it can be traced."""
        host_of(self).plot_network_architecture()

    def _save_debug_information(self) -> None:
        """Do nothing: `debug.json` is written by our trainer."""


def host_of(user: nnUNetTrainer) -> Any:
    """Return what the base's hooks do for an object of a trainer file: a `hooks.base.RunHost`, or for prediction a
    `rebuild.PredictionHost`.

    Raises:
        ConfigError: it was made by other code.
    """
    host = vars(user).get(HOST)
    if host is None:
        raise ConfigError(
            f"{type(user).__name__} is made by 'segwright train --nnunet-trainer FILE.py', not by other code"
        )
    return host


def make_user(cls: type[nnUNetTrainer], host: Any) -> nnUNetTrainer:
    """Return an object of a trainer class, connected to its training, before its `__init__`."""
    user = cls.__new__(cls)
    vars(user)[HOST] = host
    return user


def overrides(cls: type[nnUNetTrainer], hook: str) -> bool:
    """Return whether a class, or one between it and the base, has a hook of its own."""
    found: object = getattr(cls, hook)
    return found is not getattr(nnUNetTrainer, hook)


def differ(value: object, other: object) -> bool:
    """Return whether two values of an attribute differ; objects without an equality of their own by identity."""
    plain = (bool, int, float, str, tuple, list, dict, torch.device, type(None))
    return value is not other and not (isinstance(value, plain) and isinstance(other, plain) and value == other)


def is_before_2_6(cls: type[nnUNetTrainer]) -> bool:
    """Return whether a file is written for nnU-Net 2.0 to 2.5, by the names that it imports, else by its parameters.

    Some files kept the constructor of 2.5 when they went over to the loaders of 2.6.
    """
    own = [each for each in cls.__mro__ if issubclass(each, nnUNetTrainer) and each is not nnUNetTrainer]
    names = {name for each in own for method in vars(each).values() for name in _names_in_reach(method)}
    if names & LOADING_SINCE_2_6:
        return False
    constructors = [vars(each)["__init__"] for each in own if "__init__" in vars(each)]
    if any("unpack_dataset" in inspect.signature(each).parameters for each in constructors):
        return True
    hook = inspect.signature(cls.build_network_architecture).parameters
    return {"plans_manager", "dataset_json"} <= hook.keys()


def _names_in_reach(method: Any) -> set[str]:
    """Return the names in a method's module, and those that the method imports itself."""
    function = getattr(method, "__func__", method)
    code = getattr(function, "__code__", None)
    return set() if code is None else {*function.__globals__, *code.co_names}


def accepts(cls: type[nnUNetTrainer], name: str) -> bool:
    """Return whether the constructor of a class names a parameter."""
    return name in inspect.signature(cls.__init__).parameters


def _init_kwargs(cls: type[nnUNetTrainer], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a constructor by the names of its parameters, as nnU-Net records them."""
    parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {each.name: each.default for each in parameters if each.kind not in variable}
    if len(named) < len(parameters) and "plans" not in named:
        return {name: value for name, value in known.items() if name != "unpack_dataset"}
    return {name: known.get(name, None if value is inspect.Parameter.empty else value) for name, value in named.items()}


def _class_attributes(cls: type[nnUNetTrainer]) -> dict[str, Any]:
    """Return the values that a trainer file sets in its class."""
    own = [each for each in cls.__mro__ if issubclass(each, nnUNetTrainer) and each is not nnUNetTrainer]
    return {name: value for each in reversed(own) for name, value in vars(each).items() if not name.startswith("__")}


def folders_of(host: Any, configuration: ConfigurationManager, name: str) -> dict[str, Any]:
    """Return the attributes that say where data and results are.

    Args:
        host: of the trainer file's object.
        configuration: of the plan.
        name: of the configuration.
    """
    base, output, previous = host.preprocessed_folder, host.output_folder, configuration.previous_stage_name
    stage = output.parent.with_name(f"{output.parent.name.rpartition('__')[0]}__{previous}")
    return {
        "preprocessed_dataset_folder_base": None if base is None else str(base),
        "preprocessed_dataset_folder": None if base is None else str(base / configuration.data_identifier),
        "output_folder_base": str(output.parent),
        "output_folder": str(output),
        "is_cascaded": previous is not None,
        "folder_with_segs_from_previous_stage": str(stage / "predicted_next_stage" / name) if previous else None,
    }


def _set_hyperparameters(user: nnUNetTrainer, host: Any) -> None:
    config = host.config
    user.initial_lr = config.initial_lr
    user.weight_decay = config.weight_decay
    user.oversample_foreground_percent = config.oversample_foreground_percent
    user.probabilistic_oversampling = config.oversample_by_chance
    user.num_iterations_per_epoch = config.num_iterations_per_epoch
    user.num_val_iterations_per_epoch = config.num_val_iterations_per_epoch
    user.num_epochs = config.num_epochs
    user.current_epoch = 0
    user.enable_deep_supervision = config.enable_deep_supervision
    user.save_every = config.save_every
    user.disable_checkpointing = config.disable_checkpointing
    user.batch_size = config.batch_size
