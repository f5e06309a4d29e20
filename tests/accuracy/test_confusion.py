"""Scores against scikit-learn, against sums done by hand, and in the degenerate cases."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from landfuse.accuracy.confusion import Confusion
from landfuse.legend import UNLABELLED, LandClass, Legend

U = UNLABELLED
LEGEND = Legend(
    (LandClass("water", 3, "#0000FF"), LandClass("Wald, dicht", 7, "#00FF00"), LandClass("road", 9, "#FF0000"))
)


def confusion(truth: object, prediction: object, classes: int) -> Confusion:
    result = Confusion(classes)
    result.update(np.asarray(truth, np.uint8), np.asarray(prediction, np.uint8))
    return result


def test_by_hand() -> None:
    # Class 0: 3 of 4 pixels right, 1 taken for class 1. Class 1: 1 of 2 right, 1 taken for class 2, not in the truth.
    truth = [[0, 0, 0, 0], [1, 1, U, 0]]
    prediction = [[0, 0, 0, 1], [1, 2, 0, U]]
    result = confusion(truth, prediction, 3)
    assert result.matrix.tolist() == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert result.unmapped == 1
    assert result.scores() == pytest.approx(
        {
            "OA": 4 / 6,
            "AA": (3 / 4 + 1 / 2) / 2,
            "kappa": (4 / 6 - 16 / 36) / (1 - 16 / 36),  # chance: (4 * 3 + 2 * 2 + 0 * 1) / 36
            "mF1": (6 / 7 + 1 / 2) / 2,
            "mIoU": (3 / 4 + 1 / 3) / 2,
            "unmapped": 1 / 7,
            "pixels": 6,
        }
    )
    np.testing.assert_allclose(result.precision, [1, 1 / 2, 0])
    np.testing.assert_allclose(result.recall, [3 / 4, 1 / 2, math.nan])
    np.testing.assert_allclose(result.f1, [6 / 7, 1 / 2, 0])
    np.testing.assert_allclose(result.iou, [3 / 4, 1 / 3, 0])
    assert result.support.tolist() == [4, 2, 0]
    assert result.predicted.tolist() == [3, 2, 1]


values = st.sampled_from([0, 1, 2, 3, 4, U])


@settings(deadline=None)  # scikit-learn is imported by the first example
@given(st.lists(st.tuples(values, values), max_size=60))
def test_against_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    result = confusion([t for t, _ in pairs], [p for _, p in pairs], 6)
    scored = [(t, p) for t, p in pairs if t != U and p != U]
    assert result.pixels == len(scored)
    assert result.unmapped == sum(t != U and p == U for t, p in pairs)
    if not scored:
        assert all(math.isnan(v) for k, v in result.scores().items() if k not in ("pixels", "unmapped"))
        return
    truth, prediction = zip(*scored, strict=True)
    present = sorted(set(truth))
    every = range(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of the undefined scores that the rules are about
        np.testing.assert_array_equal(result.matrix, metrics.confusion_matrix(truth, prediction, labels=every))
        expected = {
            "OA": metrics.accuracy_score(truth, prediction),
            "AA": metrics.recall_score(truth, prediction, labels=present, average="macro"),
            "kappa": metrics.cohen_kappa_score(truth, prediction),
            "mF1": metrics.f1_score(truth, prediction, labels=present, average="macro", zero_division=0),
            "mIoU": metrics.jaccard_score(truth, prediction, labels=present, average="macro", zero_division=0),
        }
        precision = metrics.precision_score(truth, prediction, labels=every, average=None, zero_division=np.nan)
        recall = metrics.recall_score(truth, prediction, labels=every, average=None, zero_division=np.nan)
        f1 = metrics.f1_score(truth, prediction, labels=every, average=None, zero_division=np.nan)
        iou = metrics.jaccard_score(truth, prediction, labels=every, average=None, zero_division=0)
    scores = result.scores()
    assert {key: scores[key] for key in expected} == pytest.approx(expected, nan_ok=True, abs=1e-12)
    np.testing.assert_allclose(result.precision, precision)
    np.testing.assert_allclose(result.recall, recall)
    np.testing.assert_allclose(result.f1, f1)
    occurs = np.isin(every, truth) | np.isin(every, prediction)  # elsewhere scikit-learn cannot say NaN for the IoU
    np.testing.assert_allclose(result.iou, np.where(occurs, iou, np.nan))


def test_absent_class_that_is_predicted_is_not_in_the_mean() -> None:
    # Three classes at recall 1 and one at 1/2 make 0.875; the fifth, predicted only, must not make it 0.7.
    result = confusion([0, 1, 2, 3, 3], [0, 1, 2, 3, 4], 5)
    assert result.average_accuracy == 0.875


def test_one_class_only() -> None:
    right = confusion([2, 2], [2, 2], 3)
    assert math.isnan(right.kappa)
    assert (right.overall_accuracy, right.average_accuracy, right.mean_f1, right.mean_iou) == (1, 1, 1, 1)
    wrong = confusion([2, 2], [1, 1], 3)
    assert (wrong.overall_accuracy, wrong.kappa, wrong.mean_f1) == (0, 0, 0)


def test_never_predicted() -> None:
    result = confusion([0, 0, 1], [0, 0, 0], 2)
    assert math.isnan(result.precision[1])
    assert (result.recall[1], result.f1[1], result.iou[1]) == (0, 0, 0)
    assert result.mean_f1 == pytest.approx(0.4)


def test_nothing_labelled_and_nothing_mapped() -> None:
    empty = Confusion(3)
    assert math.isnan(empty.scores()["unmapped"])
    ignored = confusion([U, U], [0, 1], 3)
    assert (ignored.pixels, ignored.unmapped) == (0, 0)
    unmapped = confusion([0, 1], [U, U], 3)
    assert (unmapped.scores()["unmapped"], unmapped.pixels) == (1, 0)
    assert math.isnan(unmapped.overall_accuracy)


def test_parts_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landfuse.accuracy.confusion._CHUNK", 1000)
    rng = np.random.default_rng(0)
    truth, prediction = (rng.choice([0, 1, 2, U], size=(70, 90)).astype(np.uint8) for _ in range(2))
    whole = confusion(truth, prediction, 3)
    left, right = (confusion(truth[:, part], prediction[:, part], 3) for part in (slice(40), slice(40, None)))
    total = left + right
    np.testing.assert_array_equal(total.matrix, whole.matrix)
    assert (total.unmapped, total.scores()) == (whole.unmapped, whole.scores())
    scored = (truth != U) & (prediction != U)
    np.testing.assert_array_equal(whole.matrix, metrics.confusion_matrix(truth[scored], prediction[scored]))


def test_counts_beyond_32_bits() -> None:
    n = 3 * 10**9
    result = Confusion(2, np.array([[n, n], [0, 2 * n]]))
    assert result.kappa == pytest.approx((3 / 4 - 1 / 2) / (1 - 1 / 2))


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="shape"):
        Confusion(2).update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    result = Confusion(2)
    with pytest.raises(ValueError, match="the prediction holds 2"):
        result.update(np.array([0, 1], np.uint8), np.array([0, 2], np.uint8))
    assert result.pixels == 0
    with pytest.raises(ValueError, match="2 and of 3"):
        Confusion(2) + Confusion(3)
    with pytest.raises(ValueError, match="shape"):
        Confusion(2, np.zeros((2, 3), np.int64))


def test_json_and_csv() -> None:
    result = confusion([0, 0, 1, 1, 1], [0, 1, 1, 1, U], 3)
    read = json.loads(result.to_json(LEGEND), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["scores"]["OA"] == 0.75
    assert read["scores"]["pixels"] == 4
    assert read["classes"][1] | {"code": 7, "class": "Wald, dicht", "support": 2, "recall": 1.0} == read["classes"][1]
    assert read["classes"][2]["IoU"] is None
    assert read["confusion"]["counts"] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert read["confusion"]["unmapped"] == 1
    rows = list(csv.DictReader(io.StringIO(result.to_csv(LEGEND))))
    assert [row["class"] for row in rows] == LEGEND.names
    assert [row["code"] for row in rows] == ["3", "7", "9"]
    assert rows[0]["mapped as Wald, dicht"] == "1"
    assert rows[2]["recall"] == ""
    assert float(rows[1]["precision"]) == pytest.approx(2 / 3)
