"""Scores of a map against its truth: one whole-number confusion matrix, and what is derived from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from landfuse.files import to_csv, to_json
from landfuse.legend import UNLABELLED, Legend
from landfuse.markup import table

_CHUNK = 1 << 22  # pixels counted at a time: the pair index of a pixel takes 8 bytes, its labels 2


class Confusion:
    """Counts of truth against prediction, and the scores that follow from them.

    The rules, the same everywhere in landfuse:

    - A pixel whose truth is `UNLABELLED` is ignored, whatever was predicted there.
    - A labelled pixel without a prediction (`UNLABELLED` in the map) enters no score; it is counted in `unmapped`,
      which is reported as a fraction of all labelled pixels.
    - The truth of a class, and so which classes occur, is counted on the scored pixels: labelled and mapped.
    - Means over classes (AA, mF1, mIoU) run over the classes that occur in the truth. Predicting a class that does
      not occur lowers the recall of the others; it is not one more class in the mean.
    - A class that the legend marks as not scored stays out of those means. Its pixels count in OA and kappa, and as
      errors of the other classes (clutter, in the ISPRS benchmarks).
    - A class in the truth that is never predicted has recall, F1 and IoU 0; its precision is 0 / 0, that is NaN.
    - A class that is predicted but not in the truth has precision, F1 and IoU 0; its recall is NaN.
    - A class that occurs in neither has NaN in all four.
    - Kappa is NaN where agreement by chance is certain: truth and prediction hold one and the same class only.
    - Without any scored pixel every score is NaN.

    Args:
        classes: K, the number of classes.
        matrix: (K, K) counts to start from, rows truth, columns prediction; zeros if left out.
        unmapped: labelled pixels without a prediction, to start from.
        scored: (K,), which classes enter the means; all if left out.

    Raises:
        ValueError: if the matrix is not (K, K), or `scored` not (K,).

    Source:
        Congalton 1991, doi:10.1016/0034-4257(91)90048-B (overall, producer's and user's accuracy);
        Cohen 1960, doi:10.1177/001316446002000104 (kappa).

    Examples:
        >>> import numpy as np
        >>> confusion = lf.Confusion(2)
        >>> confusion.update(np.array([[0, 0, 1]], np.uint8), np.array([[0, 1, 1]], np.uint8))
        >>> confusion.matrix.tolist(), round(confusion.scores()["OA"], 3)
        ([[1, 1], [0, 1]], 0.667)
    """

    def __init__(
        self,
        classes: int,
        matrix: NDArray[np.int64] | None = None,
        unmapped: int = 0,
        scored: NDArray[np.bool_] | None = None,
    ) -> None:
        self.matrix = np.zeros((classes, classes), np.int64) if matrix is None else np.array(matrix, np.int64)
        if self.matrix.shape != (classes, classes):
            raise ValueError(f"a confusion matrix of {classes} classes cannot have the shape {self.matrix.shape}")
        self.unmapped = int(unmapped)
        self.scored = np.ones(classes, bool) if scored is None else np.asarray(scored, bool)
        if self.scored.shape != (classes,):
            raise ValueError(f"{classes} classes, and {self.scored.shape} notes of whether they are scored")

    @classmethod
    def of(cls, legend: Legend, matrix: NDArray[np.int64] | None = None, unmapped: int = 0) -> Confusion:
        """A confusion of a legend's classes; those with `scored: false` stay out of the means."""
        return cls(len(legend), matrix, unmapped, legend.scored)

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return len(self.matrix)

    def update(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Counts further pixels; both arrays have one shape, uint8: 0..K-1 or `UNLABELLED`.

        Raises:
            ValueError: if the shapes differ, or a labelled pixel holds a value that is no class.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth of shape {truth.shape} against a prediction of shape {prediction.shape}")
        K = self.classes
        flat_truth, flat_prediction = truth.reshape(-1), prediction.reshape(-1)
        matrix, unmapped = np.zeros_like(self.matrix), 0
        for start in range(0, flat_truth.size, _CHUNK):
            t, p = flat_truth[start : start + _CHUNK], flat_prediction[start : start + _CHUNK]
            labelled = t != UNLABELLED
            mapped = labelled & (p != UNLABELLED)
            unmapped += int(labelled.sum() - mapped.sum())
            t, p = t[mapped], p[mapped]
            for what, values in (("truth", t), ("prediction", p)):
                if values.size and values.max() >= K:
                    raise ValueError(f"the {what} holds {values.max()}, which is no class of 0..{K - 1}")
            pairs = t.astype(np.int64) * K + p
            matrix += np.bincount(pairs, minlength=K * K).reshape(K, K)
        self.matrix += matrix
        self.unmapped += unmapped

    def __add__(self, other: Confusion) -> Confusion:
        if not isinstance(other, Confusion):
            return NotImplemented
        if other.classes != self.classes:
            raise ValueError(f"confusions of {self.classes} and of {other.classes} classes cannot be added")
        return Confusion(self.classes, self.matrix + other.matrix, self.unmapped + other.unmapped, self.scored)

    def __repr__(self) -> str:
        return f"Confusion({self.classes} classes, {self.pixels} pixels, {self.unmapped} unmapped)"

    @property
    def pixels(self) -> int:
        """Number of scored pixels: labelled and mapped."""
        return int(self.matrix.sum())

    @property
    def unmapped_fraction(self) -> float:
        """Fraction of the labelled pixels that the map leaves without a class; NaN if no pixel is labelled."""
        labelled = self.pixels + self.unmapped
        return self.unmapped / labelled if labelled else math.nan

    @property
    def support(self) -> NDArray[np.int64]:
        """Scored pixels of each class in the truth: (K,)."""
        return np.asarray(self.matrix.sum(axis=1))

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Scored pixels of each class in the map: (K,)."""
        return np.asarray(self.matrix.sum(axis=0))

    @property
    def precision(self) -> NDArray[np.float64]:
        """Of the pixels mapped as a class, the fraction that are it (user's accuracy): (K,)."""
        return _ratio(self._hits, self.predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Of the pixels of a class, the fraction mapped as it (producer's accuracy): (K,)."""
        return _ratio(self._hits, self.support)

    @property
    def f1(self) -> NDArray[np.float64]:
        """2 hits / (truth + prediction), the harmonic mean of precision and recall: (K,)."""
        return _ratio(2 * self._hits, self.support + self.predicted)

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union, hits / (truth + prediction - hits): (K,)."""
        return _ratio(self._hits, self.support + self.predicted - self._hits)

    @property
    def overall_accuracy(self) -> float:
        """OA: the fraction of scored pixels mapped as what they are."""
        return int(self._hits.sum()) / self.pixels if self.pixels else math.nan

    @property
    def average_accuracy(self) -> float:
        """AA: the mean recall of the classes in the truth."""
        return self._mean(self.recall)

    @property
    def mean_f1(self) -> float:
        """mF1: the mean F1 of the classes in the truth."""
        return self._mean(self.f1)

    @property
    def mean_iou(self) -> float:
        """mIoU: the mean IoU of the classes in the truth."""
        return self._mean(self.iou)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: (OA - chance) / (1 - chance), chance = sum over classes of truth fraction * map fraction."""
        if not self.pixels:
            return math.nan
        # In Python's whole numbers: one class only is then recognised exactly, and n * n cannot overflow.
        n, hits = self.pixels, int(self._hits.sum())
        by_chance = sum(t * p for t, p in zip(self.support.tolist(), self.predicted.tolist(), strict=True))
        return (n * hits - by_chance) / (n * n - by_chance) if n * n != by_chance else math.nan

    def scores(self) -> dict[str, float]:
        """The scores of the whole map: OA, AA, kappa, mF1, mIoU, unmapped (a fraction) and pixels (a count)."""
        return {
            "OA": self.overall_accuracy,
            "AA": self.average_accuracy,
            "kappa": self.kappa,
            "mF1": self.mean_f1,
            "mIoU": self.mean_iou,
            "unmapped": self.unmapped_fraction,
            "pixels": self.pixels,
        }

    def per_class(self, names: Sequence[str]) -> list[dict[str, str | int | float]]:
        """The scores of each class, in order: class, support, predicted, precision, recall, F1, IoU."""
        columns = (self.support, self.predicted, self.precision, self.recall, self.f1, self.iou)
        keys = ("class", "support", "predicted", "precision", "recall", "F1", "IoU")
        lists = [column.tolist() for column in columns]
        return [dict(zip(keys, row, strict=True)) for row in zip(names, *lists, strict=True)]

    def to_json(self, legend: Legend) -> str:
        """All of it as JSON; a score that is not defined is null."""
        rows = self.per_class(legend.names)
        return to_json(
            {
                "scores": Confusion.of(legend, self.matrix, self.unmapped).scores(),
                "classes": [{"code": c.code, **row} for c, row in zip(legend, rows, strict=True)],
                "confusion": {
                    "rows": "truth",
                    "columns": "prediction",
                    "classes": legend.names,
                    "counts": self.matrix,
                    "unmapped": self.unmapped,
                },
            }
        )

    def _repr_html_(self) -> str:
        scores = self.scores()
        caption = "  ".join(f"{name} {scores[name]:.3f}" for name in ("OA", "AA", "kappa", "mF1", "mIoU"))
        head = ("truth \\ map", *range(self.classes), "precision", "recall", "F1")
        rows = [
            (number, *self.matrix[number].tolist(), *(f"{row[name]:.3f}" for name in ("precision", "recall", "F1")))
            for number, row in enumerate(self.per_class([str(number) for number in range(self.classes)]))
        ]
        return table(caption, [str(cell) for cell in head], rows)

    def to_csv(self, legend: Legend) -> str:
        """One row per class as CSV: its scores, then its row of the confusion matrix; undefined scores are empty."""
        titles = [f"mapped as {name}" for name in legend.names]
        rows = zip(legend, self.per_class(legend.names), self.matrix.tolist(), strict=True)
        return to_csv([{"code": c.code, **row, **dict(zip(titles, counts, strict=True))} for c, row, counts in rows])

    @property
    def _hits(self) -> NDArray[np.int64]:
        return np.diagonal(self.matrix)

    def _mean(self, values: NDArray[np.float64]) -> float:
        present = (self.support > 0) & self.scored
        return float(values[present].mean()) if present.any() else math.nan


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """part / whole, NaN where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))
