"""Pixels of one slice, and sheets of many cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from segwright.report.colours import COLOURS, label_colour, rgb
from segwright.report.overlays.blocks import DrawOptions, draw_case
from segwright.report.overlays.panels import contours, draw_panel
from segwright.report.overlays.sheets import SheetHeader, sheets
from segwright.report.overlays.shown_case import ShownCase

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def pixels_of(panel: npt.NDArray[np.uint8], colour: Sequence[int]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (panel == np.array(colour)).all(axis=-1)
    return found


def block(shape: tuple[int, int], rows: slice, columns: slice, value: int = 1) -> npt.NDArray[np.uint16]:
    labels = np.zeros(shape, dtype=np.uint16)
    labels[rows, columns] = value
    return labels


def test_a_label_covers_exactly_the_pixels_of_its_voxels() -> None:
    labels = block((4, 10), slice(1, 2), slice(3, 5), value=2)  # voxels of 50 x 10 pixels
    panel = draw_panel(np.zeros((4, 10), np.uint8), size=(200, 100), labels=labels)
    expected = np.zeros((200, 100), dtype=bool)
    expected[50:100, 30:50] = True
    assert ((panel > 0).any(axis=-1) == expected).all()
    is_edge = pixels_of(panel, rgb(label_colour(2)))
    assert is_edge.sum() == 2 * 50 + 2 * 20 - 4
    assert not is_edge[51:99, 31:49].any()


def test_contours_show_the_image_and_hide_nothing_inside() -> None:
    image = np.full((8, 8), 77, np.uint8)
    panel = draw_panel(image, size=(64, 64), labels=block((8, 8), slice(2, 6), slice(2, 6)), filled=False)
    assert (panel[17:47, 17:47] == 77).all()
    assert pixels_of(panel, rgb(COLOURS[0]))[16, 16:48].all()


def test_the_reference_is_dashed_where_the_prediction_differs() -> None:
    grey = np.full((8, 8), 100, np.uint8)
    reference, labels = (block((8, 8), slice(2, 6), slice(2, stop)) for stop in (6, 5))
    panel = draw_panel(grey, size=(64, 64), labels=labels, filled=False, reference=reference)
    is_dash = pixels_of(panel, WHITE) | pixels_of(panel, BLACK)
    assert is_dash[16:48, 47].all()  # its right edge
    assert pixels_of(panel, WHITE)[16:48, 47].mean() == 0.5
    assert pixels_of(panel, rgb(COLOURS[0]))[16:48, 16].all()  # the left edge of both
    assert not is_dash[:, :40].any()
    missed = draw_panel(grey, size=(64, 64), labels=labels * 0, reference=reference)
    assert (pixels_of(missed, WHITE) | pixels_of(missed, BLACK))[16, 16:48].all()


def test_touching_labels_of_one_colour_are_separated() -> None:
    labels = np.ones((6, 6), dtype=np.uint16)
    labels[:, 3:] = 25
    assert label_colour(1) == label_colour(25)
    assert contours(labels).any(axis=0).tolist() == [False, False, True, True, False, False]


def test_colours_of_an_image_are_kept() -> None:
    image = np.zeros((3, 3, 3), np.uint8)
    image[..., 0], image[..., 1] = 200, 50
    assert (draw_panel(image, size=(64, 64)) == (200, 50, 0)).all()


OPTIONS = DrawOptions(
    names=["organ", "lesion"], plane="auto", slices=3, size=64, zoom=False, contours=False, role="labels"
)


LEGEND = [(name, label_colour(position)) for position, name in enumerate(OPTIONS.names, start=1)]


def case(identifier: str = "c", depth: int = 9) -> ShownCase:
    positions = np.zeros((depth, 16, 12), dtype=np.uint16)
    positions[2:7, 4:9, 4:9] = 1
    positions[depth - 1, 0, 0] = 2
    return ShownCase(
        identifier=identifier,
        image=np.full((1, depth, 16, 12), 5.0, np.float32),
        window=(0.0, 10.0),
        labels=positions,
        reference=None,
        spacing=(1.0, 1.0, 1.0),
        directions="SPL",
    )


def test_slices_are_named_by_their_number_in_the_file() -> None:
    drawn = draw_case(case(), replace(OPTIONS, slices=2))
    assert [panel.caption for panel in drawn.rows[0]] == ["slice 5 of 9", "slice 9 of 9"]
    assert [panel.letters for panel in drawn.rows[0]] == ["APRL", "APRL"]
    assert drawn.remark == "axial, pixels of 1 x 1"


def test_zoom_keeps_the_aspect_ratio_and_all_labels() -> None:
    labels = np.zeros((9, 160, 120), dtype=np.uint16)
    labels[4, 40:80, 50:60] = 1
    shown = replace(case(), image=np.full((1, *labels.shape), 5.0, np.float32), labels=labels, spacing=(4.0, 1.0, 2.0))
    (whole,), (near,) = (
        draw_case(shown, replace(OPTIONS, slices=1, size=240, zoom=zoom)).rows for zoom in (False, True)
    )
    assert [panel.pixels.shape[:2] for panel in (*whole, *near)] == [(160, 240), (240, 208)]  # 60 x 52 mm
    assert pixels_of(near[0].pixels, rgb(COLOURS[0])).sum(axis=1).max() == 10 * 2 * 4
    assert near[0].caption == whole[0].caption == "slice 5 of 9"


def test_labels_in_no_slice_are_named() -> None:
    assert "not in these slices: organ" in draw_case(case(), replace(OPTIONS, slices=1)).remark


def test_what_is_missing_is_said() -> None:
    assert "no label map" in draw_case(replace(case(), labels=None), OPTIONS).remark
    empty = replace(case(), labels=np.zeros((9, 16, 12), dtype=np.uint16))
    assert "label map is empty" in draw_case(empty, OPTIONS).remark
    assert "prediction is empty" in draw_case(empty, replace(OPTIONS, role="prediction")).remark


def test_slices_show_where_prediction_and_reference_differ() -> None:
    reference = np.zeros((30, 16, 12), dtype=np.uint16)
    reference[5:25, 4:9, 4:9] = 1
    labels = reference.copy()
    labels[22, 4:8, 4:9] = 0
    compared = replace(case(depth=30), labels=labels, reference=reference)
    for is_drawn, options in ((True, OPTIONS), (False, replace(OPTIONS, ignored=1))):
        (above, below) = draw_case(compared, replace(options, role="prediction")).rows
        assert [panel.caption for panel in above if "slice 23 of 30" in panel.caption] == (
            ["reference, slice 23 of 30"] if is_drawn else []
        )
        assert len(above) == len(below)
    (only,) = draw_case(compared, replace(OPTIONS, contours=True)).rows
    assert len(only) == len(above)


def test_a_sheet_holds_every_panel_of_its_cases_unchanged() -> None:
    header = SheetHeader(title="Dataset", notes=["a note"], legend=LEGEND)
    drawn = [draw_case(case(f"case {number}\n\x1b[1m" + "x" * 300), OPTIONS) for number in range(3)]
    (sheet,) = sheets(drawn, header)
    pixels = np.asarray(sheet)
    assert pixels_of(pixels, rgb(label_colour(1))).any()
    corner = drawn[0].rows[0][0].pixels[:10, :20]  # without letters
    height, width = corner.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (height, width, 3))[:, :, 0]
    starts = np.argwhere((windows[:, :, 0, 0] == corner[0, 0]).all(axis=-1))
    assert sum(bool((windows[row, column] == corner).all()) for row, column in starts) >= 9


def test_cases_continue_on_further_sheets() -> None:
    header = SheetHeader(title="Dataset", notes=[], legend=LEGEND)
    options = replace(OPTIONS, size=512)
    drawn = list(sheets((draw_case(case(str(number)), options) for number in range(9)), header))
    assert len(drawn) > 1
    assert all(sheet.height < 2300 for sheet in drawn)


@pytest.mark.parametrize("count", [0, 200])
def test_a_legend_of_any_length_is_written(count: int) -> None:
    legend = [(f"structure {number}" + "y" * number, label_colour(number)) for number in range(1, count + 1)]
    drawn = replace(draw_case(case(), OPTIONS), labels=frozenset(range(1, count + 1)))
    (sheet,) = sheets([drawn], SheetHeader(title="", notes=[], legend=legend))
    assert sheet.width < 1000
