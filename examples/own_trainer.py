"""Train and validate with a custom trainer: `python -m examples.own_trainer DATASET_FOLDER`.

Run `segwright preprocess` first. Prediction with the trained model imports this module, and therefore needs
`segwright predict --trust-code` or `load_model(model, trust_code=True)`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from examples import tiny_network
from segwright.core.files.json_documents import read_json
from segwright.data import splits
from segwright.data.plan import Configuration, Plan
from segwright.data.preprocessed.store import CaseStore
from segwright.evaluation.scores import Scores
from segwright.training.config import TrainConfig
from segwright.training.trainer import Trainer
from segwright.workspace import Workspace


class TinyTrainer(Trainer):
    """Trainer of the tiny network, independent of the plan."""

    @staticmethod
    def build_network_architecture(
        plans: Plan,
        configuration: Configuration,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the network of this trainer."""
        return tiny_network.build(
            num_input_channels,
            num_output_channels,
            patch_size=configuration.patch_size,
            deep_supervision=enable_deep_supervision,
        )


def train(dataset: Path, workspace: Workspace, *, config: TrainConfig, configuration: str = "3d_fullres") -> Scores:
    """Train fold 0 and score its held-out cases."""
    name = dataset.name
    plan = Plan.load(workspace.plans_file(name, "nnUNetPlans"))
    cases = CaseStore(workspace.case_folder(name, plan.configuration(configuration).data_identifier))
    folds = splits.resolve(workspace.splits_file(name), cases.identifiers())
    trainer = TinyTrainer(
        plan,
        configuration,
        0,
        read_json(workspace.dataset_copy(name)),
        device="auto",
        cases=cases,
        split=splits.select(folds, cases.identifiers(), 0),
        output_folder=workspace.model_folder(name, TinyTrainer.__name__, plan.plans_name, configuration) / "fold_0",
        references=dataset / "labelsTr",
        config=config,
    )
    trainer.run_training()
    return trainer.perform_actual_validation()


if __name__ == "__main__":
    scores = train(
        Path(sys.argv[1]).absolute(), Workspace.under(Path("segwright-work")), config=TrainConfig(budget_s=60)
    )
    print(scores.foreground_mean)
