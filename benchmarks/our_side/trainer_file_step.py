"""Time a step with a trainer file that overrides the network, in turns with our trainer and the same network.

`trainer_file_step.py PLANS DATASET_JSON FOLDER`: Hippocampus patches, batch size 2. CPU seconds of one thread are
compared, which other work on the machine disturbs less.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segwright.compat.nnunet.loading import load_trainer_file
from segwright.compat.nnunet.run import NnunetRun
from segwright.core.process_tuning import tune_process
from segwright.data.crossval.splits import Split
from segwright.data.plan import Configuration, Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.training.config import TrainConfig
from segwright.training.trainer import Trainer

BATCH_SIZE = 2
PAIRS = 15

TRAINER_FILE = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerNetwork(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, num_input_channels, num_output_channels,
                                   enable_deep_supervision=True):
        return nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
"""


class NetworkTrainer(Trainer):
    """Our trainer, which overrides the network too."""

    @staticmethod
    def build_network_architecture(
        plans: Plan,
        configuration: Configuration,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the planned network."""
        return Trainer.build_network_architecture(
            plans, configuration, num_input_channels, num_output_channels, enable_deep_supervision
        )


def main() -> None:
    """Print the medians as JSON."""
    torch.set_num_threads(1)  # waiting threads would count as CPU time
    tune_process()  # as the command line does
    plans, description = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
    folder = Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "nnUNetTrainerNetwork.py"
    file.write_text(TRAINER_FILE)
    options: dict[str, Any] = {
        "device": "cpu",
        "cases": CaseStore(folder / "cases"),
        "split": Split(train=(), val=()),
        "output_folder": folder / "fold_0",
        "config": TrainConfig(batch_size=BATCH_SIZE),
    }
    trainers = (
        NetworkTrainer(plans, "3d_fullres", 0, description, **options),
        NnunetRun(plans, "3d_fullres", 0, description, loaded=load_trainer_file(file), **options),
    )
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(BATCH_SIZE, 1, 40, 56, 40, generator=generator)
    sizes = [(40 // factor, 56 // factor, 40 // factor) for factor in (1, 2, 4)]
    target = [torch.randint(0, 3, (BATCH_SIZE, 1, *size), generator=generator).short() for size in sizes]
    seconds: list[list[float]] = [[], []]
    for trainer in trainers:
        trainer.initialize()
        trainer.network.train()
    for number in range(PAIRS + 1):
        for index in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            trainers[index].train_step({"data": data, "target": target, "keys": []})
            if number > 0:
                seconds[index].append(time.process_time() - start)
    medians = [statistics.median(each) for each in seconds]
    ratio = statistics.median(file / own for own, file in zip(*seconds, strict=True))
    print(json.dumps({"seconds": medians[1], "own_trainer_s": medians[0], "file_to_own": ratio}))


if __name__ == "__main__":
    main()
