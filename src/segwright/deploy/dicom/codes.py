"""Codes of what a model segments, for DICOM objects: guessed from the names of labels, or read from `segments.json`.

The file has the form of dcmqi (https://qiicr.org/dicom4qi), which its editor, 3D Slicer and other programs read.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segwright.core.errors import ConfigError
from segwright.core.extensions.extras import imports_of
from segwright.core.files.json_documents import read_json, write_json
from segwright.data.labels import ClassKey, Labels

_SIDES: Final = {"left": ("7771000", "SCT", "Left"), "right": ("24028007", "SCT", "Right")}
_SIDE_WORDS: Final = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}
_ANATOMY: Final = ("91723000", "SCT", "Anatomical Structure")
_ABNORMAL: Final = ("49755003", "SCT", "Morphologically Abnormal Structure")
_TISSUE: Final = ("85756007", "SCT", "Tissue")
_OBJECT: Final = ("260787004", "SCT", "Physical object")
_NEOPLASM: Final = ("108369006", "SCT", "Neoplasm")
_GROUPS: Final = ((7192, _ANATOMY), (7194, _ABNORMAL), (7191, _TISSUE), (7157, _OBJECT))
"""DICOM's context groups of segmented properties, with their category, in the order of the search."""
_SPELLINGS: Final = {
    **{"tumour": "neoplasm", "tumor": "neoplasm", "cancer": "neoplasm", "grey": "gray", "oesophagus": "esophagus"},
    **{"oedema": "edema", "haemorrhage": "hemorrhage", "vertebrae": "vertebra", "necrotic": "necrosis"},
    **{"metastasis": "neoplasmsecondary", "metastases": "neoplasmsecondary"},
}
_LONGER: Final = {
    **{frozenset({"adrenal"}): {"adrenal", "gland"}, frozenset({"urinary", "bladder"}): {"bladder"}},
    **{frozenset({"thyroid", "gland"}): {"thyroid"}, frozenset({"brainstem"}): {"brain", "stem"}},
}
"""Words for which the dictionary has others."""
_UNIMPORTANT: Final = frozenset({"of", "the", "and", "structure", "region"})
_OF_LESIONS: Final = frozenset({"whole", "core", "enhancing", "solid", "primary"})
"""Words of a part of a lesion, as in `enhancing_tumor`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A coded concept.

    Attributes:
        value: the code.
        scheme: its coding scheme, e.g. SCT for SNOMED CT.
        meaning: in words.
    """

    value: str
    scheme: str
    meaning: str

    def to_json(self) -> dict[str, str]:
        """Return the term as dcmqi writes it."""
        return {"CodeValue": self.value, "CodingSchemeDesignator": self.scheme, "CodeMeaning": self.meaning}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment of a DICOM object: a label, or a region of several labels.

    Attributes:
        number: from 1 without gaps, in the order of the model's classes.
        name: shown by viewers.
        values: label values that belong to it.
        category: what kind of thing it is, e.g. Anatomical Structure.
        kind: what it is, e.g. Kidney.
        modifier: of `kind`: left or right.
        region: where it is, e.g. Liver for a tumour of the liver.
        colour: red, green and blue from 0 to 255.
        is_unknown: the name was found in no dictionary, so that `category` and `kind` say only Tissue.
    """

    number: int
    name: str
    values: tuple[int, ...]
    category: Term
    kind: Term
    modifier: Term | None = None
    region: Term | None = None
    colour: tuple[int, int, int]
    is_unknown: bool = False

    def __str__(self) -> str:
        side = "" if self.modifier is None else f", {self.modifier.meaning}"
        place = "" if self.region is None else f" in {self.region.meaning}"
        return f"{self.name}: {self.kind.meaning}{side}{place} ({self.category.meaning})"

    def to_json(self) -> dict[str, Any]:
        """Return the segment as dcmqi writes it."""
        optional = {
            "SegmentedPropertyTypeModifierCodeSequence": self.modifier,
            "AnatomicRegionSequence": self.region,
        }
        return {
            "labelID": self.number,
            "SegmentLabel": self.name,
            "SegmentDescription": self.name,
            "SegmentAlgorithmType": "AUTOMATIC",
            "SegmentAlgorithmName": "Segwright",
            "SegmentedPropertyCategoryCodeSequence": self.category.to_json(),
            "SegmentedPropertyTypeCodeSequence": self.kind.to_json(),
            **{key: term.to_json() for key, term in optional.items() if term is not None},
            "recommendedDisplayRGBValue": list(self.colour),
        }


_Dictionary = Mapping[frozenset[str], tuple[Term, Term]]
"""Category and term of concepts, by the words of their names."""


def guess_segments(labels: Labels) -> tuple[Segment, ...]:
    """Return the segments of a model's foreground classes, coded by what pydicom's dictionaries know of their names.

    A name may have a side (`kidney_left`), and a lesion a place (`liver_tumour`). Unknown names become Tissue.

    Raises:
        ConfigError: pydicom is not installed.
    """
    known = _dictionary()
    return tuple(_guess(number, labels.class_name(key), values, known) for number, key, values in _classes(labels))


def read_segments(file: Path, labels: Labels) -> tuple[Segment, ...]:
    """Return the segments of a model from its `segments.json`.

    Args:
        file: as `write_segments` or dcmqi write it; `labelID` counts the classes from 1.
        labels: of the model.

    Raises:
        ConfigError: an entry is missing, surplus or incomplete.
    """
    document = read_json(file)
    groups = document.get("segmentAttributes") if isinstance(document, dict) else None
    is_usable = isinstance(groups, list) and all(isinstance(group, list) for group in groups)
    entries = [entry for group in groups or () for entry in group] if is_usable else []
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{file}: expected an object with segmentAttributes, a list of lists of segments")
    found = {entry.get("labelID"): entry for entry in entries}
    expected = {number: labels.class_name(key) for number, key, _ in _classes(labels)}
    if {*found} != {*expected} or len(entries) != len(expected):
        wanted = ", ".join(f"{number} ({name})" for number, name in expected.items())
        raise ConfigError(f"{file}: labelID {', '.join(map(str, found))}; expected {wanted}, each once")
    return tuple(_parsed(file, found[number], number, values) for number, _, values in _classes(labels))


def write_segments(segments: Sequence[Segment], file: Path, *, model: str) -> None:
    """Write segments as `segments.json`, to be edited; `model` is the model's name."""
    write_json(
        file,
        {
            "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/seg-schema.json#",
            "ContentCreatorName": "Segwright^Software",
            "SeriesDescription": model,
            "segmentAttributes": [[segment.to_json()] for segment in segments],
        },
    )


def _classes(labels: Labels) -> Iterator[tuple[int, ClassKey, tuple[int, ...]]]:
    """Yield number, key and label values of each foreground class."""
    for number, key in enumerate(labels.evaluation_classes(), start=1):
        yield number, key, key if isinstance(key, tuple) else (key,)


def _guess(number: int, name: str, values: tuple[int, ...], known: _Dictionary) -> Segment:
    words = _words(name)
    without_side = words - {*_SIDE_WORDS}
    sides = {_SIDE_WORDS[word] for word in words - without_side}
    whole = known.get(words)  # such as `left atrium`
    found = whole or known.get(without_side)
    region = None
    if found is None:
        found, region = _lesion(without_side, known)
    category, kind = found or (_term(_TISSUE), _term(_TISSUE))
    return Segment(
        number=number,
        name=name,
        values=values,
        category=category,
        kind=kind,
        modifier=_term(_SIDES[sides.pop()]) if len(sides) == 1 and whole is None else None,
        region=region,
        colour=_colour(number),
        is_unknown=found is None,
    )


def _lesion(words: frozenset[str], known: _Dictionary) -> tuple[tuple[Term, Term] | None, Term | None]:
    """Return the codes of a lesion and its place, of a name such as `liver_tumour` or `enhancing_tumor`."""
    for word in sorted(words):
        lesion, rest = known.get(frozenset({word})), words - {word} - _OF_LESIONS
        place = known.get(rest)
        if lesion is not None and lesion[0].value == _ABNORMAL[0] and (place is not None or not rest):
            return lesion, None if place is None else place[1]
    return None, None


def _words(name: str) -> frozenset[str]:
    """Return the words of a name that matter, in one spelling.

    >>> sorted(_words("KidneyTumour_left"))
    ['kidney', 'left', 'neoplasm']
    """
    split = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^\w]|_", " ", name).casefold().split()
    words = frozenset(_SPELLINGS.get(word, word) for word in split) - _UNIMPORTANT
    for given, other in _LONGER.items():
        if words - {*_SIDE_WORDS} == given:
            words = words - given | other
    return words


def _dictionary() -> _Dictionary:
    """Return category and term of each concept of DICOM's context groups, by the words of its name."""
    with imports_of("dicom"):
        from pydicom.sr.codedict import codes
    found = {frozenset({"neoplasm"}): (_term(_ABNORMAL), _term(_NEOPLASM))}
    for group, category in _GROUPS:
        for keyword, code in getattr(codes, f"CID{group}").concepts.items():
            term = Term(value=code.value, scheme=code.scheme_designator, meaning=code.meaning)
            for name in (keyword, code.meaning):
                found.setdefault(_words(name), (_term(category), term))
    return found


def _term(code: tuple[str, str, str]) -> Term:
    return Term(value=code[0], scheme=code[1], meaning=code[2])


def _colour(number: int) -> tuple[int, int, int]:
    """Return a colour that differs from those of the numbers before: hues a golden angle apart."""
    red, green, blue = colorsys.hsv_to_rgb(0.618034 * (number - 1) % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _parsed(file: Path, entry: Mapping[str, Any], number: int, values: tuple[int, ...]) -> Segment:
    """Return a segment of its entry.

    Raises:
        ConfigError: a code is missing or incomplete.
    """

    def term(key: str, *, is_required: bool = False) -> Term | None:
        code = entry.get(key)
        if code is None and not is_required:
            return None
        names = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
        if not isinstance(code, dict) or not all(isinstance(code.get(name), str) and code[name] for name in names):
            raise ConfigError(f"{file}, labelID {number}: {key} needs {', '.join(names)}")
        return Term(value=code[names[0]], scheme=code[names[1]], meaning=code[names[2]])

    name = entry.get("SegmentLabel") or entry.get("SegmentDescription")
    colour = entry.get("recommendedDisplayRGBValue", list(_colour(number)))
    if not isinstance(name, str):
        raise ConfigError(f"{file}, labelID {number}: SegmentLabel is missing")
    if not isinstance(colour, list) or len(colour) != 3 or not all(each in range(256) for each in colour):
        raise ConfigError(f"{file}, labelID {number}: recommendedDisplayRGBValue is {colour}, expected 3 values to 255")
    category = term("SegmentedPropertyCategoryCodeSequence", is_required=True)
    kind = term("SegmentedPropertyTypeCodeSequence", is_required=True)
    assert category is not None
    assert kind is not None
    return Segment(
        number=number,
        name=name,
        values=values,
        category=category,
        kind=kind,
        modifier=term("SegmentedPropertyTypeModifierCodeSequence"),
        region=term("AnatomicRegionSequence"),
        colour=(int(colour[0]), int(colour[1]), int(colour[2])),
    )
