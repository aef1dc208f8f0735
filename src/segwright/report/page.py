"""Render the report of models as one self-contained HTML page."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

import segwright
from segwright.data.fingerprint import Fingerprint
from segwright.evaluation import statistics
from segwright.planning.rationale import EVERYWHERE, format_sizes, format_value
from segwright.report import charts, tables
from segwright.report.error_analysis import MIN_CASES, ErrorAnalysis, Relation
from segwright.report.html import csp_hash, fill_template, template_text
from segwright.report.results import SelectionReport
from segwright.report.sources import FoldRecord, ModelRecord, ScoreSet
from segwright.report.viewer import CaseInViewer, viewer_document
from segwright.report.volumes import PackedCase

_INTENSITIES = ("mean", "std", "min", "percentile_00_5", "median", "percentile_99_5", "max")
_MAX_CURVES = 8
_MADE_FROM = re.compile(r'<meta name="segwright-made-from" content="([0-9a-f]*)">')
_HEAD_CHARS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewedCase:
    """A case in the viewer: its rank (worst, median, best), scores and voxels."""

    rank: str
    name: str
    mean: float
    dice: Mapping[str, float]
    packed: PackedCase


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSet:
    """A set of scores, what loses most in it, the cases in its viewer, and why others cannot be shown."""

    scored: ScoreSet
    errors: ErrorAnalysis | None = None
    viewed: tuple[ViewedCase, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownModel:
    """A model with its scores; `volumes` are label volumes in mL (or voxels) by class name."""

    model: ModelRecord
    sets: tuple[ShownSet, ...]
    volumes: Mapping[str, Sequence[float]]
    volume_unit: str = "mL"


def render(
    models: Sequence[ShownModel], *, created: datetime, selection: SelectionReport | None = None, source_hash: str = ""
) -> str:
    """Render the report of models of one dataset, and of the selection among them.

    `source_hash` is the hash of the source documents, stored in the page.
    """
    style, script = template_text("report.css"), template_text("viewer.js") + template_text("report.js")
    return fill_template(
        "report.html",
        page=_page(models, created),
        selection=None if selection is None else _selection(selection),
        version=segwright.__version__,
        source_hash=source_hash,
        style=Markup(style),
        script=Markup(script),
        style_hash=csp_hash(style),
        script_hash=csp_hash(script),
    )


def source_hash_of(file: Path) -> str:
    """Read the hash of the source documents from a page; empty if the file or the hash is missing."""
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            head = stream.read(_HEAD_CHARS)
    except OSError:
        return ""
    match = _MADE_FROM.search(head)
    return match[1] if match else ""


def _page(models: Sequence[ShownModel], created: datetime) -> dict[str, Any]:
    first = models[0]
    counter = itertools.count(1)
    several = len(models) > 1
    return {
        "title": first.model.dataset,
        "headlines": [_headline(item, several=several) for item in models if item.sets],
        "models": [_model(item, counter, several=several) for item in models],
        "resamples": statistics.NUM_RESAMPLES,
        "min_cases": statistics.MIN_CASES_FOR_INTERVAL,
        "facts": _facts(first.model),
        "data_charts": _data_charts(first),
        "data_missing": [] if first.model.fingerprint else ["The model folder has no dataset_fingerprint.json."],
        "intensity_names": [
            name.replace("percentile_00_5", "0.5 %").replace("percentile_99_5", "99.5 %") for name in _INTENSITIES
        ],
        "intensities": _intensities(first.model),
        "created": created.strftime("%Y-%m-%d %H:%M"),
        "has_pictures": any(shown_set.viewed for item in models for shown_set in item.sets),
    }


def _headline(item: ShownModel, *, several: bool) -> dict[str, Any]:
    scored = item.sets[0].scored
    row = tables.class_rows(scored.scores, item.model.labels)[-1]
    name = f"{item.model.configuration_name}: " if several else ""
    return {
        "value": row.values["Dice"],
        "interval": row.interval,
        "text": f"{name}{scored.title}, {scored.num_cases} case{'s' * (scored.num_cases != 1)}",
        "note": statistics.few_cases_note(scored.num_cases),
    }


def _model(item: ShownModel, counter: Iterator[int], *, several: bool) -> dict[str, Any]:
    model = item.model
    return {
        "name": model.configuration_name,
        "suffix": f": {model.configuration_name}" if several else "",
        "folder": model.folder.name,
        "sets": [_set(part, model, next(counter)) for part in item.sets],
        "folds": [{"name": fold.name, "charts": _curves(fold, model), "notes": _notes(fold)} for fold in model.folds],
        "plan": _plan(model),
        "decisions": [
            {
                "name": each.decision if each.configuration == EVERYWHERE else f"{each.configuration}, {each.decision}",
                "value": format_value(each.value),
                "reason": each.reason,
            }
            for each in tables.decisions(model)
        ],
        "environment": tables.environment(model),
    }


def _selection(report: SelectionReport) -> dict[str, Any]:
    comparison = report.comparison
    return {
        "folds": ", ".join(map(str, comparison.folds)),
        "cases": comparison.cases,
        "candidates": [
            {
                "name": each.name,
                "dice": each.dice,
                "interval": each.interval,
                "is_winner": each.name == comparison.winner,
            }
            for each in comparison.candidates
        ],
        "margin": comparison.margin,
        "margin_interval": comparison.margin_interval,
        "postprocessing": report.postprocessing.decisions,
        "dice_estimator": report.dice_estimator,
        "calibration": report.calibration,
    }


def _set(part: ShownSet, model: ModelRecord, number: int) -> dict[str, Any]:
    scored, labels = part.scored, model.labels
    rows = tables.class_rows(scored.scores, labels)
    classes = [row.name for row in rows[: len(scored.scores.mean)]]
    dice = statistics.dice_table(scored.scores)
    groups = [
        charts.Group(name=name, values=[value for value in dice[:, column].tolist() if value == value])
        for column, name in enumerate(classes)
    ]
    return {
        "number": number,
        "title": scored.title,
        "note": scored.note,
        "num_cases": scored.num_cases,
        "measures": [
            {"key": name, "title": tables.measure_title(name), "digits": tables.measure_digits(name)}
            for name in tables.measure_names(scored.scores)
        ],
        "surface_measures": tables.surface_names(scored.scores),
        "surfaces": tables.surface_rows(scored.scores, labels),
        "rows": [
            {
                "name": row.name,
                "values": row.values,
                "interval": row.interval,
                "num_cases": row.num_cases,
                "is_mean": position >= len(classes),
            }
            for position, row in enumerate(rows)
        ],
        "errors": None if part.errors is None else _errors(part.errors),
        "distribution": charts.dots("Dice of every case", groups, x_name="Dice"),
        "classes": classes,
        "cases": tables.case_rows(scored.scores, labels, model.description.file_ending),
        "missing": part.missing,
        "viewed": [
            {
                "name": case.name,
                "rank": case.rank,
                "mean": case.mean,
                "thumbnail": case.packed.thumbnail,
                "payload": case.packed.payload,
            }
            for case in part.viewed
        ],
        "about": _about(part.viewed, model),
    }


def _errors(found: ErrorAnalysis) -> dict[str, Any]:
    first, last = found.ends
    worst = found.classes[0]
    names = (f"{first} third", "middle third", f"{last} third")
    groups = [
        charts.Group(name=name, values=column.tolist()) for name, column in zip(names, worst.thirds.T, strict=True)
    ]
    return {
        "sentences": found.sentences,
        "measured": found.measured,
        "thirds": names if any(each.mean_thirds for each in found.classes) else (),
        "classes": [
            {
                "loss": each,
                "size": _correlation(each.relations.get("size")),
                "contrast": _correlation(each.relations.get("contrast")),
                "thirds": each.mean_thirds or (math.nan,) * len(names),
            }
            for each in found.classes
        ],
        "min_cases": MIN_CASES,
        "chart": charts.dots(f"Dice of {worst.name} by position of the slices", groups, x_name="Dice"),
    }


def _correlation(relation: Relation | None) -> dict[str, Any] | None:
    return None if relation is None else {"value": relation.value, "is_clear": relation.is_clear}


def _about(viewed: Sequence[ViewedCase], model: ModelRecord) -> dict[str, Any]:
    """Return the document for the viewer's script."""
    cases = [
        CaseInViewer(
            name=case.name,
            caption=f"{case.rank}: {case.name} ({_dice_of_classes(case.dice)}); {case.packed.remark}",
            packed=case.packed,
        )
        for case in viewed
    ]
    return viewer_document(cases, model.labels, list(model.description.channel_names.values()))


def _dice_of_classes(dice: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" if value == value else f"{name} absent" for name, value in dice.items())


def _curves(fold: FoldRecord, model: ModelRecord) -> list[Markup]:
    epochs = [row["epoch"] for row in fold.epochs]

    def column(key: str) -> list[float | None]:
        return [value if isinstance(value := row.get(key), int | float) else None for row in fold.epochs]

    def part(position: int) -> list[float | None]:
        rows = (row.get("dice_per_class_or_region") for row in fold.epochs)
        return [row[position] if isinstance(row, list) and position < len(row) else None for row in rows]

    losses = [("training loss", "train_losses"), ("validation loss", "val_losses")]
    names = [model.labels.class_name(key) for key in model.labels.evaluation_classes()][:_MAX_CURVES]
    wait_ms = [None if wait is None else 1000 * wait for wait in column("loader_wait_s")]
    dice = [charts.Series(name="moving average", x=epochs, y=column("ema_fg_dice"))]
    dice += [charts.Series(name=name, x=epochs, y=part(position)) for position, name in enumerate(names)]
    drawn = (
        charts.lines(
            "Loss", [charts.Series(name=name, x=epochs, y=column(key)) for name, key in losses], x_name="epoch"
        ),
        charts.lines(_pseudo_dice_title(fold), dice[:_MAX_CURVES], x_name="epoch", limits=(0.0, 1.0)),
        charts.lines("Learning rate", [charts.Series(name="learning rate", x=epochs, y=column("lrs"))], x_name="epoch"),
        charts.lines(
            "Wait of a step for its batch, ms", [charts.Series(name="wait", x=epochs, y=wait_ms)], x_name="epoch"
        ),
    )
    return [chart for chart in drawn if chart]


def _pseudo_dice_title(fold: FoldRecord) -> str:
    num_cases = fold.training.get("cases", {}).get("val")
    of_cases = f" of {num_cases} case{'s' * (num_cases != 1)}" if isinstance(num_cases, int) else ""
    return f"Pseudo Dice on random patches{of_cases}"


def _notes(fold: FoldRecord) -> list[str]:
    notes = [str(note) for note in fold.training.get("notes", ())]
    seconds = [row["elapsed_s"] for row in fold.epochs if isinstance(row.get("elapsed_s"), int | float)]
    steps = sum(row["steps"] for row in fold.epochs if isinstance(row.get("steps"), int))
    waits = [row["loader_wait_s"] for row in fold.epochs if isinstance(row.get("loader_wait_s"), int | float)]
    if seconds:
        wait = f"; a step waited {1000 * fmean(waits):.1f} ms for its batch" if waits else ""
        notes.insert(0, f"{len(fold.epochs)} epochs, {steps} steps, {seconds[-1]:.0f} s of training{wait}")
    return notes


def _facts(model: ModelRecord) -> list[tuple[str, str]]:
    description = model.description
    raw = description.raw()
    labels = ", ".join(f"{name} ({format_value(value)})" for name, value in raw.get("labels", {}).items())
    facts = [
        ("dataset", model.dataset),
        *((key, str(raw[key])) for key in ("name", "description", "reference", "licence", "release") if key in raw),
        ("cases", str(len(model.fingerprint.spacings) if model.fingerprint else description.num_training)),
        ("channels", ", ".join(description.channel_names.values())),
        ("labels", labels),
        ("files", f"{description.file_ending}, read by {model.plan.image_reader_writer}"),
    ]
    if model.fingerprint:
        kept = model.fingerprint.median_relative_size_after_cropping
        facts.append(("cropping keeps", f"{kept:.1%} of the median image"))
    return facts


def _data_charts(item: ShownModel) -> list[Markup]:
    fingerprint = item.model.fingerprint
    drawn = []
    if fingerprint:
        spacings, sizes = fingerprint.spacings, fingerprint.shapes_after_crop
        drawn += [
            charts.dots("Voxel spacing", _by_axis(spacings, fingerprint), x_name="mm"),
            charts.dots("Image size after cropping", _by_axis(sizes, fingerprint), x_name="voxels"),
        ]
    groups = [charts.Group(name=name, values=values) for name, values in item.volumes.items()]
    drawn.append(charts.dots("Volume of the labels, scored cases", groups, x_name=item.volume_unit))
    return [chart for chart in drawn if chart]


def _by_axis(rows: Sequence[Sequence[float]], fingerprint: Fingerprint) -> list[charts.Group]:
    """Group the values by axis, without axes along which all images have size 1."""
    is_flat = [set(sizes) == {1} for sizes in zip(*fingerprint.shapes_after_crop, strict=True)]
    return [
        charts.Group(name=f"axis {axis}", values=[float(value) for value in values])
        for axis, values in enumerate(zip(*rows, strict=True))
        if not is_flat[axis]
    ]


def _intensities(model: ModelRecord) -> list[tuple[str, list[float]]]:
    if model.fingerprint is None:
        return []
    names = model.description.channel_names
    return [
        (names.get(channel, channel), [getattr(item, name) for name in _INTENSITIES])
        for channel, item in model.fingerprint.foreground_intensity_properties_per_channel.items()
    ]


def _plan(model: ModelRecord) -> list[tuple[str, str]]:
    chosen = model.configuration
    network = chosen.architecture
    stages = network.arch_kwargs.get("features_per_stage")
    facts = [
        ("plans", f"{model.plan.plans_name}, made by {model.plan.experiment_planner_used or 'an unknown planner'}"),
        ("target spacing", format_sizes(chosen.spacing)),
        ("median image", format_sizes(chosen.median_image_size_in_voxels)),
        ("patch size", format_sizes(chosen.patch_size)),
        ("batch size", str(chosen.batch_size)),
        ("normalisation", ", ".join(chosen.normalization_schemes)),
        ("network", network.network_class_name.rpartition(".")[2]),
        ("features per stage", format_value(stages) if stages else ""),
    ]
    return [(name, value) for name, value in facts if value]
