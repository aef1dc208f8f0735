"""Trainer file, run by nnU-Net 2.8.1 and by Segwright: the base's training with fixed weights and batches.

It overrides where batches come from and what is recorded, nothing of how a step is computed. `recorded.json` in the
output folder gets losses, counts, learning rates and the weights at the end.
"""

import json
from os.path import join
from zlib import crc32

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam


class FixedBatches:
    """Endless noise with a bright and a dark box; one batch is like the next with this number."""

    def __init__(self, trainer, seed):
        self.random = np.random.RandomState(seed)
        self.shape = [int(size) for size in trainer.configuration_manager.patch_size]
        self.batch_size = trainer.batch_size
        self.labels = trainer.label_manager
        scales = trainer._get_deep_supervision_scales()
        self.scales = None if scales is None else [round(1 / scale[-1]) for scale in scales]

    def __iter__(self):
        return self

    def __next__(self):
        label = np.zeros((self.batch_size, 1, *self.shape), dtype=np.int16)
        for sample in label[:, 0]:
            for value in (1, 2):
                first = [self.random.randint(0, size - 6) for size in self.shape]
                sample[tuple(slice(start, start + 6) for start in first)] = value
        noise = self.random.normal(size=label.shape)
        data = torch.from_numpy((noise + 2.0 * (label == 1) - 2.0 * (label == 2)).astype(np.float32))
        if self.labels.has_ignore_label:
            label[:, :, :3] = self.labels.ignore_label
        target = self.target(torch.from_numpy(label))
        step = (slice(None), slice(None))
        if self.scales is not None:
            target = [target[step + (slice(None, None, scale),) * len(self.shape)].clone() for scale in self.scales]
        return {"data": data, "target": target, "keys": ["fixed"] * self.batch_size}

    def target(self, label):
        if not self.labels.has_regions:
            return label
        regions = [torch.isin(label, torch.as_tensor(region)) for region in self.labels.foreground_regions]
        if self.labels.has_ignore_label:
            regions.append(label == self.labels.ignore_label)
        return torch.cat(regions, 1)


class FixedBatchesTrainer(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = None):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 5, 2
        self.recorded = {"train_losses": [], "val_losses": [], "counts": []}

    def initialize(self):
        super().initialize()
        for name, weights in self.network.named_parameters():
            random = np.random.RandomState(crc32(name.encode()))
            size = tuple(weights.shape)
            values = 1.0 if weights.ndim == 1 and name.endswith("weight") else 0.0
            if weights.ndim > 1:
                values = random.normal(size=size) * (2 / np.prod(size[1:])) ** 0.5
            weights.data.copy_(torch.from_numpy(np.broadcast_to(values, size).astype(np.float32)))

    def get_dataloaders(self):
        return FixedBatches(self, 0), FixedBatches(self, 1)

    def on_train_epoch_end(self, train_outputs):
        self.recorded["train_losses"] += [float(step["loss"]) for step in train_outputs]
        super().on_train_epoch_end(train_outputs)

    def on_validation_epoch_end(self, val_outputs):
        self.recorded["val_losses"] += [float(step["loss"]) for step in val_outputs]
        for step in val_outputs:
            self.recorded["counts"].append([np.ravel(step[key]).tolist() for key in ("tp_hard", "fp_hard", "fn_hard")])
        super().on_validation_epoch_end(val_outputs)

    def on_train_end(self):
        for key in ("lrs", "mean_fg_dice", "ema_fg_dice"):
            self.recorded[key] = [float(value) for value in self.logger.get_value(key, step=None)]
        weights = {name: value.detach().double() for name, value in self.network.named_parameters()}
        self.recorded["weights"] = {name: [float(w.sum()), float(w.norm())] for name, w in sorted(weights.items())}
        with open(join(self.output_folder, "recorded.json"), "w") as file:
            json.dump(self.recorded, file)
        super().on_train_end()


class FixedBatchesAdamTrainer(FixedBatchesTrainer, nnUNetTrainerAdam):
    """A published variant with these batches."""


class FixedBatchesLossTrainer(FixedBatchesTrainer):
    """The loss of the base where a file builds on it."""

    def _build_loss(self):
        return super()._build_loss()
