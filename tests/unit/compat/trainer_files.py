"""Trainer files in the manner of public ones, of nnU-Net's four interfaces, and the small task to run them on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from segwright.compat.nnunet.loading import load_trainer_file
from segwright.compat.nnunet.run import NnunetRun
from segwright.core.interrupt import Interrupted
from segwright.training.checkpointing import checkpoints
from tests.unit.training.tiny_task import make

BASE = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"

NOTHING = """
class nnUNetTrainerNothing(nnUNetTrainer):
    pass
"""

TINY_NET = """
import torch
from torch import nn

class TinyNet(nn.Module):
    def __init__(self, inputs, heads, deep):
        super().__init__()
        self.high = nn.Sequential(nn.Conv3d(inputs, 4, 3, padding=1), nn.LeakyReLU())
        self.low = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1, stride=2), nn.LeakyReLU())
        self.out, self.out_low = nn.Conv3d(4, heads, 1), nn.Conv3d(4, heads, 1)
        self.deep = deep

    def forward(self, x):
        high = self.high(x)
        low = self.low(high)
        full = self.out(high + nn.functional.interpolate(low, size=high.shape[2:]))
        return (full, self.out_low(low)) if self.deep else full
"""

NETWORK_2023 = (
    TINY_NET
    + """
class nnUNetTrainerTiny(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, unpack_dataset: bool = True,
                 device: torch.device = torch.device('cuda')):
        super().__init__(plans, configuration, fold, dataset_json, unpack_dataset, device)
        self.initial_lr = 1e-3

    @staticmethod
    def build_network_architecture(plans_manager, dataset_json, configuration_manager, num_input_channels,
                                   enable_deep_supervision: bool = True) -> nn.Module:
        heads = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
        return TinyNet(num_input_channels, heads, enable_deep_supervision)

    def set_deep_supervision_enabled(self, enabled: bool):
        self.network.deep = enabled
"""
)

NETWORK_2024 = """
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

class nnUNetTrainerDropout(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, unpack_dataset=True, device=torch.device('cuda')):
        plans['configurations'][configuration]['patch_size'] = [8, 16, 16]
        super().__init__(plans, configuration, fold, dataset_json, unpack_dataset, device)
        self.enable_deep_supervision = False

    @staticmethod
    def build_network_architecture(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                   num_input_channels, num_output_channels, enable_deep_supervision=True):
        kwargs = {**arch_init_kwargs, 'dropout_op': 'torch.nn.modules.dropout.Dropout3d',
                  'dropout_op_kwargs': {'p': 0.2}}
        return get_network_from_plans(architecture_class_name, kwargs, [*arch_init_kwargs_req_import, 'dropout_op'],
                                      num_input_channels, num_output_channels, allow_init=True,
                                      deep_supervision=enable_deep_supervision)
"""

INSTANCE_2025 = """
import numpy as np
import torch
from torch import autocast, nn
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.helpers import dummy_context

class WithHead(nn.Module):
    def __init__(self, net, heads):
        super().__init__()
        self.net, self.head = net, nn.Linear(heads, 2)

    def forward(self, x):
        output = self.net(x)
        full = output[0] if isinstance(output, (list, tuple)) else output
        return output, self.head(full.mean((2, 3, 4)))

class nnUNetTrainerPair(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device('cuda')):
        self.weight = 0.5
        super().__init__(plans, configuration, fold, dataset_json, device)

    def build_network_architecture(self, architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                   num_input_channels, num_output_channels, enable_deep_supervision=True):
        net = super().build_network_architecture(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                                 num_input_channels, num_output_channels, enable_deep_supervision)
        assert len(self.configuration_manager.patch_size) == 3
        return WithHead(net, num_output_channels)

    def set_deep_supervision_enabled(self, enabled):
        self.network.net.decoder.deep_supervision = enabled

    def train_step(self, batch: dict) -> dict:
        data = batch['data'].to(self.device, non_blocking=True)
        target = [i.to(self.device, non_blocking=True) for i in batch['target']]
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device.type, enabled=True) if self.device.type == 'cuda' else dummy_context():
            output, extra = self.network(data)
            l, e = self.loss(output, target), self.weight * extra.pow(2).mean()
        (l + e).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()
        return {'loss': l.detach().cpu().numpy(), 'extra': e.detach().cpu().numpy()}

    def on_train_epoch_end(self, train_outputs):
        outputs = collate_outputs(train_outputs)
        self.logger.my_fantastic_logging.setdefault('extra', [])
        self.logger.log('train_losses', np.mean(outputs['loss']), self.current_epoch)
        self.logger.log('extra', np.mean(outputs['extra']), self.current_epoch)

    def validation_step(self, batch):
        output, _ = self.network(batch['data'].to(self.device))
        target = [i.to(self.device) for i in batch['target']]
        l, output, target = self.loss(output, target), output[0], target[0]
        one_hot = torch.zeros(output.shape).scatter_(1, output.argmax(1)[:, None], 1)
        tp, fp, fn, _ = get_tp_fp_fn_tn(one_hot, target, axes=[0, 2, 3, 4], mask=None)
        return {'loss': l.detach().cpu().numpy(), 'tp_hard': tp.numpy()[1:], 'fp_hard': fp.numpy()[1:],
                'fn_hard': fn.numpy()[1:]}
"""

MODERN_2026 = """
import numpy as np
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

class nnUNetTrainerModern(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, num_input_channels, num_output_channels,
                                   enable_deep_supervision=True):
        return nnUNetTrainer.build_network_architecture(plans_manager, configuration_manager, num_input_channels,
                                                        num_output_channels, enable_deep_supervision)

    def configure_optimizers(self):
        optimizer = AdamW(self.network.parameters(), lr=3e-4, weight_decay=self.weight_decay)
        return optimizer, CosineAnnealingLR(optimizer, T_max=self.num_epochs)

    def _build_loss(self):
        loss = DC_and_CE_loss({'batch_dice': self.configuration_manager.batch_dice, 'smooth': 0, 'do_bg': False,
                               'ddp': self.is_ddp}, {}, weight_ce=1, weight_dice=2,
                              ignore_label=self.label_manager.ignore_label, dice_class=MemoryEfficientSoftDiceLoss)
        if self.enable_deep_supervision:
            scales = self._get_deep_supervision_scales()
            weights = np.array([1 / (2 ** i) for i in range(len(scales))])
            weights[-1] = 0
            loss = DeepSupervisionWrapper(loss, weights / weights.sum())
        return loss

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation, dummy_2d, initial, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = (0,)
        return rotation, dummy_2d, initial, (0, 1)

    def on_epoch_end(self):
        super().on_epoch_end()
        assert self.logger.get_value('train_losses', step=-1) > 0
"""

OWN_LOOP = """
import torch
from os.path import join
from time import time
from torch.optim.lr_scheduler import ReduceLROnPlateau

class nnUNetTrainerLoop(nnUNetTrainer):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.network.parameters(), 1e-3)
        return optimizer, ReduceLROnPlateau(optimizer, patience=1)

    def on_train_epoch_start(self):
        self.network.train()
        self.print_to_log_file(f"Current learning rate: {self.optimizer.param_groups[0]['lr']}")
        self.logger.log('lrs', self.optimizer.param_groups[0]['lr'], self.current_epoch)

    def on_epoch_end(self):
        self.logger.log('epoch_end_timestamps', time(), self.current_epoch)
        self.print_to_log_file('train_loss', self.logger.my_fantastic_logging['train_losses'][-1])
        ema = self.logger.my_fantastic_logging['ema_fg_dice'][-1]
        if self._best_ema is None or ema > self._best_ema:
            self._best_ema = ema
            self.save_checkpoint(join(self.output_folder, 'checkpoint_best.pth'))
        self.lr_scheduler.step(self.logger.my_fantastic_logging['val_losses'][-1])
        self.current_epoch += 1

    def run_training(self):
        self.on_train_start()
        for epoch in range(self.current_epoch, self.num_epochs):
            self.on_epoch_start()
            self.on_train_epoch_start()
            train_outputs = []
            for _ in range(self.num_iterations_per_epoch):
                train_outputs.append(self.train_step(next(self.dataloader_train)))
            self.on_train_epoch_end(train_outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                val_outputs = []
                for _ in range(self.num_val_iterations_per_epoch):
                    val_outputs.append(self.validation_step(next(self.dataloader_val)))
                self.on_validation_epoch_end(val_outputs)
            self.on_epoch_end()
            if epoch == 1:
                break
        self.on_train_end()
"""

COPIED_INITIALIZE = """
import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch.nn.parallel import DistributedDataParallel as DDP

class nnUNetTrainerCopied(nnUNetTrainer):
    def initialize(self):
        if self.was_initialized:
            raise RuntimeError("initialized twice")
        self.num_input_channels = determine_num_input_channels(self.plans_manager, self.configuration_manager,
                                                               self.dataset_json)
        self.network = self.build_network_architecture(
            self.configuration_manager.network_arch_class_name,
            self.configuration_manager.network_arch_init_kwargs,
            self.configuration_manager.network_arch_init_kwargs_req_import,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision).to(self.device)
        if self._do_i_compile():
            self.network = torch.compile(self.network)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.network = DDP(self.network, device_ids=[self.local_rank])
        self.loss = self._build_loss()
        self.was_initialized = True

    def save_checkpoint(self, filename: str) -> None:
        super().save_checkpoint(filename)
        torch.save({'epoch': self.current_epoch + 1}, filename.replace('.pth', '_extra.pth'))

    def do_split(self):
        train, validation = super().do_split()
        return train[:-1], validation
"""

TEACHER = """
import copy
import torch
from torch import nn

class nnUNetTrainerTeacher(nnUNetTrainer):
    def initialize(self):
        super().initialize()
        self.network.head = nn.Linear(4, 2).to(self.device)
        self.teacher = copy.deepcopy(self.network)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def on_train_epoch_end(self, train_outputs):
        super().on_train_epoch_end(train_outputs)
        for average, new in zip(self.teacher.parameters(), self.network.parameters()):
            average.data.mul_(0.9).add_(new.data, alpha=0.1)

    def save_checkpoint(self, filename):
        super().save_checkpoint(filename)
        torch.save({'teacher': self.teacher.state_dict()}, filename.replace('checkpoint_', 'teacher_'))

    def load_checkpoint(self, filename_or_checkpoint):
        super().load_checkpoint(filename_or_checkpoint)
        file = filename_or_checkpoint.replace('checkpoint_', 'teacher_')
        self.teacher.load_state_dict(torch.load(file)['teacher'])
"""

TRANSFORMS = """
class Brighter:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, **sample):
        sample = self.inner(**sample)
        sample['image'] = sample['image'] + 0.1
        return sample

class nnUNetTrainerBrighter(nnUNetTrainer):
    @staticmethod
    def get_training_transforms(patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes,
                                do_dummy_2d_data_aug, use_mask_for_norm=None, is_cascaded=False,
                                foreground_labels=None, regions=None, ignore_label=None):
        return Brighter(nnUNetTrainer.get_training_transforms(
            patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes, do_dummy_2d_data_aug,
            use_mask_for_norm, is_cascaded, foreground_labels, regions, ignore_label))

    def do_split(self):
        from batchgenerators.utilities.file_and_folder_operations import join, load_json
        splits = load_json(join(self.preprocessed_dataset_folder_base, 'splits_final.json'))
        return splits[self.fold]['train'][1:], splits[self.fold]['val']
"""

OLD_LOADERS = """
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDataset

class nnUNetTrainerOldLoaders(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, unpack_dataset=True, device=None):
        super().__init__(plans, configuration, fold, dataset_json, unpack_dataset, device)

    def get_tr_and_val_datasets(self):
        train, validation = self.do_split()
        return (nnUNetDataset(self.preprocessed_dataset_folder, train, num_images_properties_loading_threshold=0),
                nnUNetDataset(self.preprocessed_dataset_folder, validation, num_images_properties_loading_threshold=0))

    def get_plain_dataloaders(self, initial_patch_size, dim):
        return super().get_plain_dataloaders(self.configuration_manager.patch_size, dim)
"""

FILES = {
    "nnUNetTrainerNothing": NOTHING,
    "nnUNetTrainerTiny": NETWORK_2023,
    "nnUNetTrainerDropout": NETWORK_2024,
    "nnUNetTrainerPair": INSTANCE_2025,
    "nnUNetTrainerModern": MODERN_2026,
    "nnUNetTrainerLoop": OWN_LOOP,
    "nnUNetTrainerCopied": COPIED_INITIALIZE,
    "nnUNetTrainerTeacher": TEACHER,
}


def write_trainer(folder: Path, text: str, name: str = "trainer_under_test") -> Path:
    """Write a trainer file, with the import of the base class first."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.py"
    file.write_text(BASE + dedent(text), encoding="utf-8")
    return file


def make_run(folder: Path, text: str, **options: Any) -> NnunetRun:
    """Return a training of the tiny task with a trainer file."""
    loaded = load_trainer_file(write_trainer(folder / "code", text))
    run = make(folder, partial(NnunetRun, loaded=loaded), **options)  # type: ignore[arg-type]
    assert isinstance(run, NnunetRun)
    return run


def straight_and_resumed(folder: Path, text: str) -> tuple[NnunetRun, NnunetRun]:
    """Return two finished runs of a trainer file: one without a break, one that was stopped and resumed."""
    whole = make_run(folder / "whole", text)
    whole.run_training()
    first = make_run(folder / "parts", text, callbacks=[lambda run: run.stop.request("SIGTERM")])
    with pytest.raises(Interrupted, match="--resume"):
        first.run_training()
    latest = checkpoints.find_resumable(first.output_folder)
    assert latest is not None
    second = make_run(folder / "parts", text)
    second.load_checkpoint(latest)
    second.run_training()
    return whole, second
