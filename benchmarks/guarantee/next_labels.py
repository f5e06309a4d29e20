"""What to label next: labels needed to reach the accuracy of labels drawn at random; unbiased estimates in the loop.

    python benchmarks/simulated/scene.py              # once; TerraMind and IDTReeS as in their scene files
    python benchmarks/guarantee/next_labels.py --scenes simulated,terramind      # labels needed, 20 seeds
    python benchmarks/guarantee/next_labels.py --scenes idtrees --most 5000
    python benchmarks/guarantee/next_labels.py --loop --most 5000                # estimates in the loop, simulated

A seed starts from 5 labels per class and adds six batches of 5 per class, from the pixels that the scene file's split
trains by; where it has folds, seed `s` takes fold `s % folds`. The model is `logistic` with its defaults (pixels alone
on IDTReeS), scored on test pixels, by which nothing is chosen. Pools and tests hold so many pixels at most, `--most`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landfuse.accuracy.confusion import Confusion
from landfuse.accuracy.estimate import estimate
from landfuse.bundles.calibration import probabilities_of
from landfuse.legend import UNLABELLED
from landfuse.models import MODELS
from landfuse.models.base import Modality
from landfuse.models.pixel_models import Pixels
from landfuse.scenes.split_rules import TEST, TRAIN
from landfuse.studies.next_labels import Candidates, score

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "few_labels"))
from run import SCENES, WINDOWS, Place

VARIANTS = ("random", "next", "uncertainty alone", "diversity alone")
BATCHES, NOISE = 6, 2.0


class Labels:
    """What can be labelled, the labels so far, and the model that learnt from them."""

    def __init__(
        self, features: NDArray[Any], values: NDArray[Any], truth: NDArray[Any], place: NDArray[Any], classes: int
    ):
        self.features, self.values, self.truth, self.place, self.classes = features, values, truth, place, classes

    def learn(self, labelled: NDArray[np.intp]) -> None:
        x, y = self.features[labelled], self.truth[labelled]
        model: Any = MODELS["logistic"]({"all": Modality(x.shape[1])}, self.classes)  # type: ignore[call-arg]
        self.tables = model.learn(Pixels(x, y), 0, Pixels(x[:0], y[:0]), None)
        self.found = probabilities_of(np.ascontiguousarray(self.tables.logits(self.features).T))

    def choose(self, variant: str, labelled: NDArray[np.intp], n: int, rng: np.random.Generator) -> NDArray[np.intp]:
        free = np.setdiff1d(np.arange(len(self.truth)), labelled)
        if variant == "random":
            return rng.choice(free, n, replace=False)
        mapped = self.found.argmax(axis=0)
        weight = score(self.found[:, free], np.bincount(mapped, minlength=self.classes) / mapped.size)
        if variant == "uncertainty alone":
            best = np.sort(self.found[:, free], axis=0)
            return free[np.argsort(best[-1] - best[-2], kind="stable")[:n]]
        if variant == "diversity alone":
            weight = np.ones(len(free))
        kept = np.argsort(-np.log(rng.random(len(free))) / weight)[:10_000]
        free, weight = free[kept], weight[kept]
        candidates = Candidates(self.place[free], weight, self.found[:, free].T, self.values[free])
        return free[candidates.choose(n, 0.5 * np.sqrt(len(self.truth) / n), int(rng.integers(2**32)))]


def taken(place: Place, roles: list[Any], role: int, seed: int, most: int) -> NDArray[np.int64]:
    """Labelled pixels of a role, where there are too many at random: (P, 3) tile, row and column."""
    found = [
        np.insert(np.argwhere((own == role) & valid & (one.labels != UNLABELLED)), 0, tile, axis=1)
        for tile, (own, valid, one) in enumerate(zip(roles, place.valid, place.scenes, strict=True))
    ]
    every = np.concatenate(found)
    return every[np.random.default_rng(seed).permutation(len(every))[:most]]


def scene(name: str, seeds: int, most: int) -> dict[str, NDArray[np.float64]]:
    """Variant -> (seeds, batches + 1, 2), OA and mF1 on test pixels."""
    place = Place(name)
    seen = place.features(() if name == "idtrees" else WINDOWS, False)
    bare = [np.concatenate([s.read(n, s.grid.window) for n in SCENES[name]]).transpose(1, 2, 0) for s in place.scenes]
    classes = len(place.file.legend)
    scores: dict[str, list[Any]] = {variant: [] for variant in VARIANTS}
    for seed in range(seeds):
        roles, first = place.roles(seed), place.drawn(5, seed)
        start = np.concatenate(
            [np.insert(np.argwhere(own == TRAIN), 0, tile, axis=1) for tile, own in enumerate(first)]
        )
        pool = np.unique(np.concatenate([start, taken(place, roles, TRAIN, seed, most)]), axis=0)
        pick = lambda parts, where: np.stack([parts[t][r, c] for t, r, c in where.tolist()])  # noqa: E731
        truth = pick([s.labels for s in place.scenes], pool)
        labels = Labels(pick(seen, pool), pick(bare, pool), truth, pool, classes)
        test = taken(place, roles, TEST, seed, most)
        of_test, right = pick(seen, test), pick([s.labels for s in place.scenes], test)
        begun = np.flatnonzero((pool[:, None] == start).all(axis=2).any(axis=1))
        for variant in VARIANTS:
            own, labelled, row = np.random.default_rng(seed), begun, []
            for batch in range(BATCHES + 1):
                labels.learn(labelled)
                confusion = Confusion.of(place.file.legend)
                confusion.update(right, labels.tables.logits(of_test).argmax(axis=1).astype(np.uint8))
                found = confusion.scores()
                row.append((found["OA"], found["mF1"]))
                if batch < BATCHES:
                    labelled = np.concatenate([labelled, labels.choose(variant, labelled, 5 * classes, own)])
            scores[variant].append(row)
    return {variant: np.array(rows) for variant, rows in scores.items()}


def needed(curve: NDArray[np.float64], goal: float, batch: int) -> str:
    """Labels, those of the start included, at which a mean curve first reaches a goal, interpolated."""
    above = np.flatnonzero(curve >= goal)
    if not above.size:
        return f"> {batch * len(curve)}"
    end = int(above[0])
    part = 0.0 if end == 0 else (goal - curve[end - 1]) / (curve[end] - curve[end - 1]) - 1
    return f"{batch * (end + 1 + part):.0f}"


def print_scene(name: str, scores: dict[str, NDArray[np.float64]], batch: int) -> None:
    for place, title in enumerate(("OA", "mF1")):
        print(f"\n{name}, {title}, mean of {len(scores['random'])} seeds, by labels:\n")
        labels = [batch * (one + 1) for one in range(BATCHES + 1)]
        print(
            f"| variant | {' | '.join(map(str, labels))} | seeds above random at the end | labels for random's last |"
        )
        print("|---|" + "---|" * (len(labels) + 2))
        random = scores["random"][..., place]
        for variant, found in scores.items():
            own = found[..., place]
            wins = "" if variant == "random" else f"{int((own[:, -1] > random[:, -1]).sum())}"
            cells = " | ".join(f"{value:.3f}" for value in own.mean(axis=0))
            print(f"| {variant} | {cells} | {wins} | {needed(own.mean(axis=0), random.mean(axis=0)[-1], batch)} |")


def loop(replicates: int, most: int, n: int = 100, rounds: int = 3) -> None:
    """Accuracy and areas of a simulated scene that is known everywhere, as estimated through the loop."""
    place = Place("simulated")
    seen, scene = place.features((), False)[0], place.scenes[0]
    at = np.argwhere(place.valid[0] & (scene.labels != UNLABELLED))
    at = at[np.random.default_rng(0).permutation(len(at))[:most]]
    truth, features, classes = scene.labels[tuple(at.T)], seen[tuple(at.T)], len(place.file.legend)
    noise = np.random.default_rng(0).standard_normal(features.shape).astype(np.float32)
    features = features + NOISE * features.std(axis=0) * noise  # else few labels leave no errors
    labels = Labels(features, features, truth, np.insert(at, 0, 0, axis=1), classes)
    true = np.bincount(truth, minlength=classes) / truth.size
    rows: dict[Any, list[Any]] = {}
    right = np.zeros(rounds + 1)
    for replicate in range(replicates):
        rng = np.random.default_rng(replicate)
        train = np.concatenate([rng.choice(np.flatnonzero(truth == k), 5, replace=False) for k in range(classes)])
        judge = rng.choice(truth.size, n, replace=False)  # once, for all maps of the loop
        chosen = np.zeros(0, np.intp)
        for number in range(rounds + 1):
            labels.learn(train)
            mapped = labels.found.argmax(axis=0)
            right[number] += float((mapped == truth).mean())
            for what, sample in (("judge", judge), ("judge and train as one", np.concatenate([judge, chosen]))):
                found = estimate(
                    truth[sample], mapped[sample], place.file.legend.names,
                    strata=np.zeros(sample.size, int), sizes={0: truth.size},
                )  # fmt: skip
                figures = [found.overall, *(c.fraction for c in found.classes)]
                goals = [float((mapped == truth).mean()), *true]
                rows.setdefault((what, number), []).append(
                    [(f.value - goal, f.low <= goal <= f.high) for f, goal in zip(figures, goals, strict=True)]
                )
            if number < rounds:
                chosen = np.concatenate([chosen, labels.choose("next", train, n, rng)])
                train = np.concatenate([train, chosen[-n:]])
    print(
        f"\n{replicates} replicates, {n} places that judge, {n} a round that train; mean error ± its standard error\n"
    )
    print("| sample | round | true OA | error of OA | intervals hold | largest bias of an area | intervals hold |")
    print("|---|---|---|---|---|---|---|")
    for (what, number), found in rows.items():
        values = np.array(found, float)
        mean, error = values[..., 0].mean(axis=0), values[..., 0].std(axis=0) / np.sqrt(replicates)
        worst, held = 1 + int(np.abs(mean[1:]).argmax()), values[..., 1].mean(axis=0)
        biases = [f"{mean[one]:+.4f} ± {error[one]:.4f}" for one in (0, worst)]
        of_map = f"{right[number] / replicates:.3f}"
        print(f"| {what} | {number} | {of_map} | {biases[0]} | {held[0]:.1%} | {biases[1]} | {held[1:].mean():.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default="simulated,terramind,idtrees")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--most", type=int, default=20_000)
    parser.add_argument("--loop", action="store_true")
    parser.add_argument("--replicates", type=int, default=500)
    options = parser.parse_args()
    if options.loop:
        loop(options.replicates, options.most)
        return
    for name in options.scenes.split(","):
        print_scene(name, scene(name, options.seeds, options.most), 5 * len(Place(name).file.legend))


if __name__ == "__main__":
    main()
