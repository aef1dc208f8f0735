"""The table of stand-in modules: which name of which module of nnU-Net's packages lives where here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_HERE: Final = "segwright.compat.nnunet"
_TRAINER: Final = "nnunetv2.training.nnUNetTrainer"


def _of(module: str, *names: str) -> dict[str, str]:
    """Return the reference `module:name` of each name of a module of this package."""
    return {name: f"{_HERE}.{module}:{name}" for name in names}


_VARIANTS: Final[Mapping[str, tuple[str, ...]]] = {
    "data_augmentation.nnUNetTrainerDA5": (
        "nnUNetTrainerDA5", "nnUNetTrainerDA5ord0", "nnUNetTrainerDA5Segord0", "nnUNetTrainerDA5_10epochs",
    ),
    "data_augmentation.nnUNetTrainerDAOrd0": (
        "nnUNetTrainerDAOrd0", "nnUNetTrainer_DASegOrd0", "nnUNetTrainer_DASegOrd0_NoMirroring",
    ),
    "data_augmentation.nnUNetTrainerNoDA": ("nnUNetTrainerNoDA",),
    "data_augmentation.nnUNetTrainerNoMirroring": (
        "nnUNetTrainerNoMirroring", "nnUNetTrainer_onlyMirror01", "nnUNetTrainer_onlyMirror01_1500ep",
        "nnUNetTrainer_onlyMirror01_DASegOrd0",
    ),
    "data_augmentation.nnUNetTrainer_noDummy2DDA": ("nnUNetTrainer_noDummy2DDA",),
    "data_augmentation.nnUNetTrainer_onlyMirror01_DA5": ("nnUNetTrainer_onlyMirror01_DA5",),
    "benchmarking.nnUNetTrainerBenchmark_5epochs": ("nnUNetTrainerBenchmark_5epochs",),
    "benchmarking.nnUNetTrainerBenchmark_5epochs_noDataLoading": ("nnUNetTrainerBenchmark_5epochs_noDataLoading",),
    "loss.nnUNetTrainerCELoss": ("nnUNetTrainerCELoss", "nnUNetTrainerCELoss_5epochs"),
    "loss.nnUNetTrainerDiceLoss": ("nnUNetTrainerDiceLoss", "nnUNetTrainerDiceCELoss_noSmooth"),
    "loss.nnUNetTrainerTopkLoss": (
        "nnUNetTrainerTopk10Loss", "nnUNetTrainerTopk10LossLS01", "nnUNetTrainerDiceTopK10Loss",
    ),
    "lr_schedule.nnUNetTrainerCosAnneal": ("nnUNetTrainerCosAnneal",),
    "lr_schedule.nnUNetTrainer_warmup": ("nnUNetTrainer_warmup",),
    "network_architecture.nnUNetTrainerBN": ("nnUNetTrainerBN",),
    "network_architecture.nnUNetTrainerNoDeepSupervision": ("nnUNetTrainerNoDeepSupervision",),
    "optimizer.nnUNetTrainerAdam": (
        "nnUNetTrainerAdam", "nnUNetTrainerAdam1en3", "nnUNetTrainerAdam3en4", "nnUNetTrainerVanillaAdam",
        "nnUNetTrainerVanillaAdam1en3", "nnUNetTrainerVanillaAdam3en4",
    ),
    "optimizer.nnUNetTrainerAdan": (
        "nnUNetTrainerAdan", "nnUNetTrainerAdan1en3", "nnUNetTrainerAdan3en4", "nnUNetTrainerAdan1en1",
        "nnUNetTrainerAdanCosAnneal",
    ),
    "sampling.nnUNetTrainer_probabilisticOversampling": (
        "nnUNetTrainer_probabilisticOversampling", "nnUNetTrainer_probabilisticOversampling_033",
        "nnUNetTrainer_probabilisticOversampling_010",
    ),
    "training_length.nnUNetTrainer_Xepochs": (
        "nnUNetTrainer_1epoch", "nnUNetTrainer_5epochs", "nnUNetTrainer_10epochs", "nnUNetTrainer_20epochs",
        "nnUNetTrainer_50epochs", "nnUNetTrainer_100epochs", "nnUNetTrainer_250epochs", "nnUNetTrainer_500epochs",
        "nnUNetTrainer_750epochs", "nnUNetTrainer_2000epochs", "nnUNetTrainer_4000epochs",
        "nnUNetTrainer_8000epochs",
    ),
    "training_length.nnUNetTrainer_Xepochs_NoMirroring": (
        "nnUNetTrainer_250epochs_NoMirroring", "nnUNetTrainer_2000epochs_NoMirroring",
        "nnUNetTrainer_4000epochs_NoMirroring", "nnUNetTrainer_8000epochs_NoMirroring",
    ),
}  # fmt: skip
"""Published variants by the module that defines them (nnU-Net behaviour 8.10)."""

VARIANT_NAMES: Final = tuple(name for names in _VARIANTS.values() for name in names)

_LOADING: Final = "nnunetv2.training.dataloading"
_CUSTOM: Final = "nnunetv2.training.data_augmentation.custom_transforms"
_SOFTMAX: Final = ("softmax_helper_dim0", "softmax_helper_dim1")
_DICE: Final = ("SoftDiceLoss", "MemoryEfficientSoftDiceLoss", "get_tp_fp_fn_tn")
_COMPOUND: Final = ("DC_and_CE_loss", "DC_and_BCE_loss", "DC_and_topk_loss")
_MANAGERS: Final = ("PlansManager", "ConfigurationManager")
_LABELS: Final = ("LabelManager", "convert_labelmap_to_one_hot", "get_labelmanager_class_from_plans")
_CONFIGURATION: Final = ("ANISO_THRESHOLD", "default_num_processes", "get_allowed_n_proc_DA")
_WORKERS: Final = ("check_workers_alive_and_busy", "check_workers_busy")
_FILES: Final = (
    "join", "isfile", "isdir", "maybe_mkdir_p", "subfiles", "subdirs", "nifti_files", "load_json", "save_json",
    "load_pickle", "write_pickle", "split_path", "makedirs", "remove", "listdir", "dirname", "basename",
)  # fmt: skip

_BASE_MODULE: Final = {
    **_of("trainer", "nnUNetTrainer"),
    **_of("names.losses", *_DICE, *_COMPOUND, "DeepSupervisionWrapper"),
    **_of("names.schedules", "PolyLRScheduler"),
    **_of("names.logging", "nnUNetLogger", "MetaLogger"),
    **_of("names.plans", *_MANAGERS, "determine_num_input_channels"),
    **_of("names.labels", "convert_labelmap_to_one_hot"),
    **_of("names.helpers", "ANISO_THRESHOLD", "default_num_processes", "empty_cache", "dummy_context"),
    **_of("names.helpers", "collate_outputs", "get_allowed_n_proc_DA", "generate_crossval_split"),
    **_of("names.helpers", *_WORKERS),
    **_of("names.files", *_FILES),
    "np": "numpy:",
    "torch": "torch:",
    "os": "os:",
    "nn": "torch.nn:",
}
"""Names that files take from the module of the trainer, most by `import *`."""

MODULES: Final[Mapping[str, Mapping[str, str]]] = {
    "nnunetv2": {},
    "nnunetv2.paths": {},
    "nnunetv2.configuration": _of("names.helpers", *_CONFIGURATION),
    f"{_TRAINER}.nnUNetTrainer": _BASE_MODULE,
    **{f"{_TRAINER}.variants.{module}": _of("variants", *names) for module, names in _VARIANTS.items()},
    "nnunetv2.training.loss.dice": _of("names.losses", *_DICE),
    "nnunetv2.training.loss.deep_supervision": _of("names.losses", "DeepSupervisionWrapper"),
    "nnunetv2.training.loss.compound_losses": {
        **_of("names.losses", *_COMPOUND, *_DICE, "RobustCrossEntropyLoss", "TopKLoss"),
        **_of("names.helpers", "softmax_helper_dim1"),
    },
    "nnunetv2.training.loss.robust_ce_loss": _of("names.losses", "RobustCrossEntropyLoss", "TopKLoss"),
    "nnunetv2.training.lr_scheduler.polylr": _of("names.schedules", "PolyLRScheduler"),
    "nnunetv2.training.lr_scheduler.warmup": _of(
        "names.schedules", "Lin_incr_LRScheduler", "Lin_incr_offset_LRScheduler", "PolyLRScheduler_offset"
    ),
    "nnunetv2.training.logging.nnunet_logger": _of("names.logging", "nnUNetLogger", "MetaLogger", "LocalLogger"),
    "nnunetv2.utilities.helpers": _of("names.helpers", *_SOFTMAX, "empty_cache", "dummy_context"),
    "nnunetv2.utilities.collate_outputs": _of("names.helpers", "collate_outputs"),
    "nnunetv2.utilities.default_n_proc_DA": _of("names.helpers", "get_allowed_n_proc_DA"),
    "nnunetv2.utilities.file_path_utilities": _of("names.helpers", *_WORKERS),
    "nnunetv2.utilities.crossval_split": _of("names.helpers", "generate_crossval_split"),
    "nnunetv2.utilities.network_initialization": _of("names.helpers", "InitWeights_He"),
    "nnunetv2.utilities.find_class_by_name": _of("names.helpers", "recursive_find_python_class"),
    "nnunetv2.utilities.json_export": _of("names.helpers", "recursive_fix_for_json_export"),
    "nnunetv2.utilities.ddp_allgather": _of("names.losses", "AllGatherGrad"),
    "nnunetv2.utilities.get_network_from_plans": _of("names.networks", "get_network_from_plans"),
    "nnunetv2.utilities.plans_handling.plans_handler": _of("names.plans", *_MANAGERS),
    "nnunetv2.utilities.label_handling.label_handling": {
        **_of("names.labels", *_LABELS),
        **_of("names.plans", "determine_num_input_channels"),
    },
    "nnunetv2.training.data_augmentation.compute_initial_patch_size": _of("names.data", "get_patch_size"),
    f"{_CUSTOM}.limited_length_multithreaded_augmenter": _of("names.loaders", "LimitedLenWrapper"),
    f"{_CUSTOM}.masking": _of("names.transforms", "MaskTransform"),
    f"{_CUSTOM}.deep_supervision_donwsampling": _of("names.transforms", "DownsampleSegForDSTransform2"),
    f"{_CUSTOM}.region_based_training": _of("names.transforms", "ConvertSegmentationToRegionsTransform"),
    f"{_CUSTOM}.transforms_for_dummy_2d": _of("names.transforms", "Convert2DTo3DTransform", "Convert3DTo2DTransform"),
    f"{_CUSTOM}.cascade_transforms": _of(
        "names.transforms",
        *("MoveSegAsOneHotToData", "ApplyRandomBinaryOperatorTransform"),
        *("RemoveRandomConnectedComponentFromOneHotEncodingTransform",),
    ),
    f"{_LOADING}.base_data_loader": _of("names.loaders", "nnUNetDataLoaderBase"),
    f"{_LOADING}.data_loader_2d": _of("names.loaders", "nnUNetDataLoader2D"),
    f"{_LOADING}.data_loader_3d": _of("names.loaders", "nnUNetDataLoader3D"),
    f"{_LOADING}.data_loader": _of("names.loaders", "nnUNetDataLoader"),
    f"{_LOADING}.nnunet_dataset": {
        **_of("names.data", "nnUNetDataset", "nnUNetDatasetBlosc2", "infer_dataset_class"),
        "nnUNetBaseDataset": f"{_HERE}.names.data:nnUNetDatasetBlosc2",
        "nnUNetDatasetNumpy": f"{_HERE}.names.data:nnUNetDatasetBlosc2",
    },
    f"{_LOADING}.utils": _of("names.data", "get_case_identifiers", "unpack_dataset"),
    "nnunetv2.inference.predict_from_raw_data": _of("names.inference", "nnUNetPredictor"),
    "nnunetv2.inference.export_prediction": _of(
        "names.inference",
        *("export_prediction_from_logits", "resample_and_save"),
        *("convert_predicted_logits_to_segmentation_with_correct_shape",),
    ),
    "nnunetv2.inference.sliding_window_prediction": _of(
        "names.inference", "compute_gaussian", "compute_steps_for_sliding_window"
    ),
    "nnunetv2.evaluation.evaluate_predictions": _of(
        "names.inference", "compute_metrics_on_folder", "labels_to_list_of_regions", "load_summary_json"
    ),
    "acvl_utils.cropping_and_padding.bounding_boxes": _of(
        "names.arrays", "bounding_box_to_slice", "crop_and_pad_nd", "insert_crop_into_image"
    ),
    "acvl_utils.cropping_and_padding.padding": _of("names.arrays", "pad_nd_image"),
    "batchgenerators.dataloading.data_loader": {
        **_of("names.loaders", "DataLoader"),
        "SlimDataLoaderBase": f"{_HERE}.names.loaders:DataLoader",
        "DataLoaderBase": f"{_HERE}.names.loaders:DataLoader",
    },
    "batchgenerators.dataloading.single_threaded_augmenter": _of("names.loaders", "SingleThreadedAugmenter"),
    "batchgenerators.dataloading.nondet_multi_threaded_augmenter": _of("names.loaders", "NonDetMultiThreadedAugmenter"),
    "batchgenerators.dataloading.multi_threaded_augmenter": _of("names.loaders", "MultiThreadedAugmenter"),
    "batchgenerators.utilities.file_and_folder_operations": {
        **_of("names.files", *_FILES),
        "save_pickle": f"{_HERE}.names.files:write_pickle",
        "write_json": f"{_HERE}.names.files:save_json",
        "subfolders": f"{_HERE}.names.files:subdirs",
        "os": "os:",
        "json": "json:",
    },
    "dynamic_network_architectures.architectures.unet": _of(
        "names.networks", "PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet"
    ),
    "dynamic_network_architectures.building_blocks.helper": _of(
        "names.network_helpers",
        *("convert_conv_op_to_dim", "convert_dim_to_conv_op", "maybe_convert_scalar_to_list"),
        *("get_matching_convtransp", "get_matching_instancenorm", "get_matching_batchnorm", "get_matching_dropout"),
        *("get_matching_pool_op",),
    ),
    "dynamic_network_architectures.building_blocks.residual": _of(
        "names.building_blocks", "BasicBlockD", "BottleneckD", "StackedResidualBlocks"
    ),
    "dynamic_network_architectures.building_blocks.simple_conv_blocks": _of(
        "names.building_blocks", "ConvDropoutNormReLU", "StackedConvBlocks"
    ),
    "dynamic_network_architectures.building_blocks.plain_conv_encoder": _of(
        "names.building_blocks", "PlainConvEncoder"
    ),
    "dynamic_network_architectures.building_blocks.residual_encoders": _of("names.building_blocks", "ResidualEncoder"),
    "dynamic_network_architectures.building_blocks.unet_decoder": _of("names.building_blocks", "UNetDecoder"),
    "dynamic_network_architectures.initialization.weight_init": _of(
        "names.helpers", "InitWeights_He", "init_last_bn_before_add_to_0"
    ),
}
"""Module name to the references of its names; every parent of a module is one as well."""
