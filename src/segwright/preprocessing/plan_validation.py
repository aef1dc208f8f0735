"""Validation of the components that a plan names; the plan of a downloaded model is untrusted input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from segwright.core.errors import PlanError, SegwrightError, did_you_mean
from segwright.core.extensions.registry import is_reference
from segwright.core.extensions.trust import TRUST_NONE, CodeTrust
from segwright.data.images.image_io import READERS
from segwright.data.plan import Configuration, Plan
from segwright.preprocessing.normalization import SCHEMES, load_schemes
from segwright.preprocessing.resampling import parse_method

PREPROCESSORS: Final = ("DefaultPreprocessor",)
LABEL_MANAGERS: Final = ("LabelManager",)
"""What plans of nnU-Net 2.0 to 2.8 name (nnU-Net behaviour 5.13); others change a model's input or output."""


def validate_components(plan: Plan, configuration: Configuration, *, trust: CodeTrust = TRUST_NONE) -> None:
    """Check that reader, normalisation, resampling, preprocessor and label manager of a plan are known.

    Args:
        plan: plan of a model, possibly made by somebody else.
        configuration: the trained configuration.
        trust: decides which `module:attr` references may be imported.

    Raises:
        PlanError: a component is unknown.
        ModelError: normalisation by an untrusted `module:attr`.
    """
    where = f"plans '{plan.plans_name}'"
    _require("image_reader_writer", plan.image_reader_writer, tuple(READERS), where)
    _require("preprocessor_name", configuration.preprocessor_name, PREPROCESSORS, where)
    _require("label_manager", plan.label_manager, LABEL_MANAGERS, where)
    load_schemes(configuration.normalization_schemes, trust, source=where)
    for scheme in configuration.normalization_schemes:
        if not is_reference(scheme):
            _require("normalization scheme", scheme, SCHEMES.names(), where)
    functions: Mapping[str, tuple[str, Mapping[str, object]]] = {
        "resampling_fn_data": (configuration.resampling_fn_data, configuration.resampling_fn_data_kwargs),
        "resampling_fn_seg": (configuration.resampling_fn_seg, configuration.resampling_fn_seg_kwargs),
        "resampling_fn_probabilities": (
            configuration.resampling_fn_probabilities,
            configuration.resampling_fn_probabilities_kwargs,
        ),
    }
    for key, (name, kwargs) in functions.items():
        try:
            parse_method(name, kwargs)
        except SegwrightError as error:
            raise PlanError(f"{where}, {key}: {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise PlanError(
                f"{where}: {key}_kwargs has a value of the wrong type ({error}); the plan is damaged"
            ) from error


def _require(key: str, name: str, known: tuple[str, ...], where: str) -> None:
    if name not in known:
        raise PlanError(f"{where}: unknown {key} '{name}'{did_you_mean(name, known)}; supported: {', '.join(known)}")
