"""Read what the name and the folders of an image file say: image or label map, case, channel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from unicodedata import normalize

from segwright.data.images.image_io import READERS

LABEL_WORDS: Final = frozenset(
    {"label", "labels", "labelmap", "labelstr", "labelsts", "labelsval", "lbl", "mask", "masks", "seg", "segs"}
    | {"segmentation", "segmentations", "annotation", "annotations", "gt", "gts", "groundtruth", "truth", "manual"}
    | {"target", "targets", "roi", "rois", "segmentationclass", "maskstr", "masksts"}
)
IMAGE_WORDS: Final = frozenset(
    {"image", "images", "imagestr", "imagests", "imagesval", "img", "imgs", "scan", "scans", "volume", "volumes"}
    | {"vol", "vols", "input", "inputs", "orig", "original", "originals", "pictures", "photos", "imaging", "jpegimages"}
)

TEST_WORDS: Final = frozenset({"test", "testing", "tests", "imagests", "labelsts"})
"""Names of folders whose cases are kept for tests."""

_ENDINGS: Final = tuple(
    sorted({ending for reader in READERS.values() for ending in reader.endings}, key=len, reverse=True)
)
_WORD: Final = re.compile(r"[^\W_]+")
_GLUED: Final = re.compile(r"([A-Za-z]+)([0-9]+)")
_BETWEEN: Final = " _-."
"""Characters that join the words of a name; others, such as brackets, belong to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """A file with what its name says.

    Attributes:
        path: of the file.
        is_label: whether it is a label map.
        is_test: whether a folder is named after tests.
        pieces: names of its folders and of itself, without ending and without words such as `images` and `mask`.
    """

    path: Path
    is_label: bool
    is_test: bool = False
    pieces: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The words of all pieces in lower case, by which image and label map of a case are matched."""
        return tuple(word for piece in self.pieces for word in words(piece))

    @property
    def own_words(self) -> tuple[str, ...]:
        """The words of the last piece."""
        return words(self.pieces[-1]) if self.pieces else ()


def ending_of(name: str) -> str:
    """Return the ending as spelled in the name of a file that can be read; empty for other files.

    >>> ending_of("case_1.NII.GZ"), ending_of("case_1.jpg")
    ('.NII.GZ', '')
    """
    return next((name[-len(ending) :] for ending in _ENDINGS if name.lower().endswith(ending)), "")


def words(text: str) -> tuple[str, ...]:
    """Return the words of a name in lower case, however its accents are encoded.

    >>> words("Case_01-T1w")
    ('case', '01', 't1w')
    """
    return tuple(word.lower() for word in _WORD.findall(normalize("NFC", text)))


def name_file(root: Path, path: Path, *, is_label: bool | None = None) -> NamedFile:
    """Return what the name of a file says; the file's own name counts before its inner and outer folders.

    Args:
        root: folder above all files, whose name says nothing.
        path: below it.
        is_label: if it is known already.
    """
    *folders, name = PurePosixPath(path.relative_to(root).as_posix()).parts
    stem = name[: -len(ending)] if (ending := ending_of(name)) else name
    own, found = _without_kind(stem)
    pieces: list[str] = [own] if own else []
    for folder in reversed(folders):
        rest, kind = _without_kind(folder)
        found = kind if found is None else found
        if kind is None or rest:  # 'masks' says nothing about the case
            pieces.insert(0, rest)
    return NamedFile(
        path=path,
        is_label=bool(found) if is_label is None else is_label,
        is_test=any(TEST_WORDS & {*words(folder)} for folder in folders),
        pieces=tuple(pieces),
    )


def _without_kind(text: str) -> tuple[str, bool | None]:
    """Return a name without a word for images or label maps, and whether it is one for label maps.

    Such a word comes first, last, before a number at the end, or right before the number that is the rest of the name.

    >>> _without_kind("case_(01)_mask"), _without_kind("img-7"), _without_kind("labels"), _without_kind("case_01")
    (('case_(01)', True), ('7', False), ('', True), ('case_01', None))
    >>> _without_kind("liver_mask_01"), _without_kind("mask01")
    (('liver_01', True), ('01', True))
    """
    found: bool | None = None
    while matches := [*_WORD.finditer(text)]:
        first, last = matches[0], matches[-1]
        if last[0].lower() in LABEL_WORDS | IMAGE_WORDS:
            word, text = last[0].lower(), text[: last.start()].rstrip(_BETWEEN) if len(matches) > 1 else ""
        elif first[0].lower() in LABEL_WORDS | IMAGE_WORDS:
            word, text = first[0].lower(), text[first.end() :].lstrip(_BETWEEN)
        elif len(matches) > 2 and last[0].isdecimal() and matches[-2][0].lower() in LABEL_WORDS | IMAGE_WORDS:
            word, text = matches[-2][0].lower(), text[: matches[-2].start()] + text[last.start() :]
        elif (glued := _GLUED.fullmatch(text)) and glued[1].lower() in LABEL_WORDS | IMAGE_WORDS:
            word, text = glued[1].lower(), glued[2]
        else:
            break
        found = found or word in LABEL_WORDS
    return text, found
