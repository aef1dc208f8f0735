from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segwright.core.errors import DatasetError, ImageError
from segwright.data.label_maps import distinct_values, whole_values
from segwright.data.labels import Labels, decoding_problem, gap_problem, ignore_problem

PLAIN = Labels.from_dataset_json({"labels": {"background": 0, "liver": 1, "tumour": 2}})
IGNORING = Labels.from_dataset_json({"labels": {"ignore": 3, "background": 0, "tumour": 2, "liver": 1}})
REGIONS = Labels.from_dataset_json(
    {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
    }
)
FIELD = np.random.RandomState(0).normal(size=(3, 4, 5, 6)).astype(np.float32)


def test_plain_labels_have_a_head_each() -> None:
    assert (PLAIN.num_heads, PLAIN.has_regions, PLAIN.regions, PLAIN.ignore_label) == (3, False, None, None)
    assert PLAIN.all_labels == (0, 1, 2)
    assert PLAIN.foreground_labels == PLAIN.evaluation_classes() == PLAIN.class_keys == (1, 2)
    assert PLAIN.names == {0: "background", 1: "liver", 2: "tumour"}


def test_ignore_label_has_no_head_but_a_class_key() -> None:
    assert (IGNORING.num_heads, IGNORING.ignore_label, IGNORING.all_labels) == (3, 3, (0, 1, 2))
    assert IGNORING.class_keys == (1, 2, (-1, 0, 1, 2))
    assert IGNORING.names == {0: "background", 1: "liver", 2: "tumour"}


def test_regions_have_a_head_each_in_declared_order() -> None:
    assert (REGIONS.num_heads, REGIONS.has_regions, REGIONS.ignore_label) == (3, True, 4)
    assert REGIONS.regions == REGIONS.evaluation_classes() == ((1, 2, 3), (2, 3), 3)
    assert REGIONS.class_keys == ((1, 2, 3), (2, 3), 3, (-1, 0, 1, 2, 3))
    assert REGIONS.names == {0: "whole", 1: "core", 2: "enhancing"}
    assert REGIONS.class_name((2, 3)) == "core"


def test_single_entry_list_makes_no_regions() -> None:
    labels = Labels.from_dataset_json({"labels": {"background": 0, "a": [1], "b": 2}})

    assert not labels.has_regions
    assert labels.names[1] == "a"


@pytest.mark.parametrize("logits", [True, False])
def test_plain_decision_is_the_largest_score(logits: bool) -> None:
    decided = PLAIN.decide(FIELD, logits=logits)

    np.testing.assert_array_equal(decided, FIELD.argmax(axis=0))
    assert decided.dtype == np.uint8


def test_of_equal_scores_the_first_wins() -> None:
    scores = np.zeros((3, 1, 1, 2), np.float32)
    scores[1:, ..., 1] = 1

    assert PLAIN.decide(scores, logits=True).ravel().tolist() == [0, 1]


def test_later_regions_write_over_earlier_ones() -> None:
    probabilities = np.array([[0.9, 0.9, 0.9, 0.5], [0.1, 0.6, 0.6, 0.2], [0.1, 0.2, 0.51, 0.5]], np.float32)

    decided = REGIONS.decide(probabilities[:, None, None, :], logits=False)

    assert decided.ravel().tolist() == [1, 2, 3, 0]


def test_region_logits_decide_as_their_probabilities() -> None:
    from_logits = REGIONS.decide(FIELD, logits=True)

    np.testing.assert_array_equal(from_logits, REGIONS.decide(REGIONS.probabilities(FIELD), logits=False))


def test_probabilities_of_labels_sum_to_one() -> None:
    probabilities = PLAIN.probabilities(FIELD.astype(np.float16) * 1000)

    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-6)


def test_probabilities_leave_the_logits_alone() -> None:
    before = FIELD.copy()

    PLAIN.probabilities(FIELD)
    REGIONS.probabilities(FIELD)

    np.testing.assert_array_equal(FIELD, before)


def test_region_probabilities_are_sigmoids() -> None:
    np.testing.assert_allclose(REGIONS.probabilities(FIELD), 1 / (1 + np.exp(-FIELD)), rtol=1e-5)


def test_encoding_gives_a_channel_per_head() -> None:
    label = np.array([-1, 0, 1, 2, 3])

    assert PLAIN.encode(label[:4]).astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert REGIONS.encode(label).astype(int).tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]


def test_encoded_labels_decide_to_themselves() -> None:
    label = np.random.RandomState(1).randint(0, 4, (3, 4, 5))

    np.testing.assert_array_equal(REGIONS.decide(REGIONS.encode(label).astype(np.float32), logits=False), label)


def test_wrong_number_of_heads_is_refused() -> None:
    with pytest.raises(DatasetError, match="has 4 channels, the labels of dataset.json need 3"):
        PLAIN.decide(np.zeros((4, 1, 1, 1)), logits=True)


def test_many_labels_are_decided_in_two_bytes() -> None:
    labels = Labels.from_dataset_json({"labels": {"background": 0, **{f"l{i}": i for i in range(1, 256)}}})

    assert labels.dtype == np.uint16


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "key 'labels' is missing"),
        ({"labels": {"a": 1}}, "'background' is missing"),
        ({"labels": {"background": 1, "a": 2}}, "'background' is 1, expected 0"),
        ({"labels": {"background": 0, "a": -2}}, "must not be negative, found -2"),
        ({"labels": {"background": 0, "a": []}}, "'a' lists no value"),
        ({"labels": {"background": 0, "a": 1, "ignore": 5}}, "'ignore' is 5, expected 2"),
        ({"labels": {"background": 0, "a": 1, "ignore": [2]}}, "'ignore' is a list, expected the single value 2"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, r"regions_class_order is missing; .*\['a', 'b'\]"),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1]},
            "regions_class_order has 1 entries",
        ),
        *(
            (
                {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1, value]},
                f"regions_class_order names {value}; expected values from 0 to 65535",
            )
            for value in (-1, 65536)
        ),
    ],
)
def test_broken_rules_are_named(document: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Labels.from_dataset_json(document)


def test_labels_that_no_label_map_holds_cannot_be_written() -> None:
    labels = Labels.from_dataset_json({"labels": {"background": 0, "a": 65536}})

    with pytest.raises(DatasetError, match="65536 cannot be written"):
        _ = labels.dtype


def test_whole_numbers_are_returned_as_they_are() -> None:
    array = np.array([[0, 1], [2, 300]], np.float32)

    assert whole_values(array, "file") is array


def test_values_next_to_whole_numbers_mean_them() -> None:
    array = np.array([0, 1, 2, 5], np.float32) * np.float32(0.9999)

    np.testing.assert_array_equal(whole_values(array, "file"), [0, 1, 2, 5])
    assert array[1] < 1, "the array itself is left alone"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0.7], r"case.mha: unexpected label value 0\.7, expected whole numbers; threshold"),
        ([0, 0.998, 1.25], r"unexpected label value 0\.998, 1\.25, expected"),
        ([1, np.nan, -np.inf], "2 voxels are NaN or infinite, expected a whole number for each"),
        ([0, 2.0**40], "unexpected label value 1099511600000, expected whole numbers up to 16777216"),
    ],
)
def test_values_that_are_no_labels_are_shown_in_full(values: list[float], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        whole_values(np.array(values, np.float32), "case.mha")


@pytest.mark.parametrize("values", [[], [0], [7, 7], [-5, 3, 0], [2**24, 0, 2**24 - 1], [*range(300)]])
def test_distinct_values_are_found_whatever_they_are(values: list[int]) -> None:
    assert distinct_values(np.array(values * 3, np.float32)) == tuple(sorted({*values}))


def test_undeclared_values_are_found() -> None:
    assert IGNORING.declared_values == (0, 1, 2, 3)
    assert IGNORING.undeclared([-1, 0, 3, 9]) == (-1, 9)


def test_gaps_below_a_value_of_millions_are_found_at_once() -> None:
    problem = gap_problem({"background": 0, "a": 1, "b": 10**12})

    assert problem is not None
    assert "values 0, 1, 1000000000000 are not consecutive, 2, 3, 4, 5, 6, 7, 8, 9, ... missing" in problem


def regions(order: list[int], **declared: Any) -> Labels:
    return Labels.from_dataset_json({"labels": {"background": 0, **declared}, "regions_class_order": order})


@pytest.mark.parametrize(
    ("order", "declared", "message"),
    [
        ([1, 2, 3], {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, None),
        ([1, 3, 2], {"kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2}, None),
        ([2, 1], {"whole": [1, 2], "core": 1}, None),
        ([3, 2], {"whole": [1, 2, 3], "core": 2}, None),  # 1 and 3 are in the same regions
        ([1, 2], {"whole": [1, 2], "core": 1}, "label 1, in 'whole', 'core', would be predicted as 2; use [2, 1]"),
        ([1, 9], {"whole": [1, 2], "core": 1}, "9 is not a declared label; use [2, 1]"),
        (
            [1, 2, 3],
            {"core": [2, 3], "whole": [1, 2, 3], "enhancing": 3},
            "label 1, in 'whole', would be predicted as 2; declare",
        ),
        ([1, 3], {"left": [1, 2], "right": [2, 3]}, "label 2, in 'left', 'right', would be predicted as 3; declare"),
    ],
)
def test_regions_must_decode_to_what_they_encode(order: list[int], declared: dict[str, Any], message: str) -> None:
    labels = regions(order, **declared)

    problem = decoding_problem(labels)

    assert (problem is None) if message is None else (problem is not None and message in problem), problem
    if message is None:
        values = np.array(labels.all_labels)
        decided = labels.decide(labels.encode(values).astype(np.float32), logits=False)
        np.testing.assert_array_equal(labels.encode(decided), labels.encode(values))


@pytest.mark.parametrize("name", ["Ignore", "IGNORE", "ignored", "ignore_label", "Ignore label", "ignore-index"])
def test_other_spellings_of_ignore_are_named(name: str) -> None:
    problem = ignore_problem({"background": 0, "a": 1, name: 2})

    assert problem is not None
    assert f"'{name}' would be trained as a class; name it 'ignore'" in problem


@pytest.mark.parametrize("labels", [{"ignore": 2, "Ignored": 1}, {"ignorance": 1}, {"a": 1}])
def test_other_names_are_no_spelling_of_ignore(labels: dict[str, int]) -> None:
    assert ignore_problem({"background": 0, **labels}) is None
