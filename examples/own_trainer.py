"""Train and validate with a network of one's own: `python -m examples.own_trainer DATASET_FOLDER`.

Run `segwright preprocess DATASET_FOLDER` first. To predict: `segwright predict --trust-code`, or
`load_model(model, network=TinyTrainer)`.
"""

import sys

import segwright
from examples import tiny_network


class TinyTrainer(segwright.Trainer):
    @staticmethod
    def build_network_architecture(plans, configuration, num_inputs, num_outputs, deep_supervision=True):
        return tiny_network.build(
            num_inputs, num_outputs, patch_size=configuration.patch_size, deep_supervision=deep_supervision
        )


if __name__ == "__main__":
    trainer = TinyTrainer.for_dataset(sys.argv[1], "3d_fullres", fold=0, budget_s=60)
    trainer.run_training()
    print(trainer.perform_actual_validation().foreground_mean)
