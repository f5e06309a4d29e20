"""The baselines: models of single pixels and the windows around them, fitted by scikit-learn in one pass.

Sources: Breiman 2001, random forests, doi 10.1023/A:1010933404324; Friedman 2001, gradient boosting, doi
10.1214/aos/1013203451. What they learnt is kept as tables of numbers (`pixel_tables`), so that the bundle holds no code
and mapping needs neither scikit-learn nor torch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from landfuse.errors import ModelError
from landfuse.legend import UNLABELLED
from landfuse.models import pixel_tables
from landfuse.models.base import DIFFUSION_LEVEL, Batches, DirectFit, Modality, settings_of
from landfuse.models.pixel_tables import UNSEEN, features_of
from landfuse.models.settings import BoostedSettings, ForestSettings, LogisticSettings, PixelSettings

log = logging.getLogger("landfuse")

_C = TypeVar("_C", bound=PixelSettings)


class Pixels(NamedTuple):
    """Labelled pixels: features (P, D), and classes (P,)."""

    x: NDArray[np.float32]
    y: NDArray[np.uint8]


class PixelModel(DirectFit):
    """What they have in common: features of pixels in, tables of numbers out.

    A subclass names its settings and its tables, and writes `learn`.
    """

    Tables: ClassVar[Any]
    Settings: ClassVar[type[PixelSettings]]

    def __init__(
        self, modalities: Mapping[str, int | Modality], classes: int, config: PixelSettings, blank: Any
    ) -> None:
        super().__init__(modalities, classes, view=config.view, core=1)
        self.pixel_settings, self.most = config, config.pixels
        self.marks_missing = bool(config.windows) or self.takes_dropped
        self.zooms = {name: modality.zoom for name, modality in self.modalities.items()}
        # Shapes are known after `fit`; `_load_from_state_dict` takes over those of a saved model.
        for name, values in vars(blank).items():
            self.register_buffer(name, torch.from_numpy(values))

    @property
    def tables(self) -> Any:
        """What it learnt, as arrays."""
        return self.Tables(**{one.name: getattr(self, one.name).cpu().numpy() for one in fields(self.Tables)})

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for one in fields(self.Tables):
            if prefix + one.name in state_dict:
                setattr(self, one.name, torch.empty_like(state_dict[prefix + one.name]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def features(self, images: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """What it sees of images, (B * H * W, D)."""
        arrays = {name: images[name].permute(0, 2, 3, 1).cpu().numpy() for name in self.zooms}
        return features_of(arrays, self.zooms, self.pixel_settings.windows, missing=self.takes_dropped)

    def _pixels(self, samples: Batches, seed: int) -> Pixels:
        """The labelled pixels of samples, those of `pixels` that the settings allow."""
        x, y = [], []
        for images, target in samples:
            known = target.flatten() != UNLABELLED
            x.append(self.features(images)[known.numpy()])
            y.append(target.flatten()[known].numpy())
        found = (
            Pixels(np.concatenate(x), np.concatenate(y))
            if x
            else Pixels(np.zeros((0, 0), np.float32), np.zeros(0, np.uint8))
        )
        most = self.pixel_settings.pixels
        if len(found.y) <= most:
            return found
        chosen = np.random.default_rng(seed).choice(len(found.y), most, replace=False)
        return Pixels(found.x[chosen], found.y[chosen])

    def fit(self, samples: Batches, seed: int, validation: Batches = (), epochs: int | None = None) -> dict[str, Any]:
        """Learns from the labelled pixels; for its arguments see `DirectFit.fit`.

        Raises:
            ModelError: if no pixel is labelled, or only one class is.
        """
        pixels = self._pixels(samples, seed)
        if not len(pixels.y):
            raise ModelError("no training pixel is labelled and has data", "at least one", "check labels and nodata")
        if windows := self.pixel_settings.windows:
            log.info(
                "beside each pixel the model sees means and standard deviations of windows of %s px: %d features in "
                "all; model.context=[] for the pixel alone", ", ".join(map(str, windows)), pixels.x.shape[1],
            )  # fmt: skip
        learnt = self.learn(pixels, seed, self._pixels(validation, seed), epochs)
        for name, values in vars(learnt).items():
            setattr(self, name, torch.tensor(values))
        return {}

    def learn(self, pixels: Pixels, seed: int, validation: Pixels, epochs: int | None) -> Any:
        """Learns from pixels, and returns the tables."""
        raise NotImplementedError

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """Logits of the pixels that are not at the images' edges, (B, K, H - 2 halo, W - 2 halo)."""
        height, width = (size - 2 * self.halo for size in self.size_of(images))
        logits = torch.from_numpy(self.tables.logits(self.features(images)))
        logits = logits.to(next(iter(images.values())).device)
        return logits.unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)


def _split_at(exact: NDArray[np.float64]) -> NDArray[np.float32]:
    """Thresholds as float32, which decide on float32 numbers as the float64 ones do: never above those."""
    with np.errstate(over="ignore"):
        single = exact.astype(np.float32).clip(max=np.finfo(np.float32).max)
    return np.where(single > exact, np.nextafter(single, np.float32(-np.inf)), single)


class Forest(PixelModel):
    """A random forest on a pixel and its surroundings; of a finer modality, on its mean and standard deviation.

    Args:
        modalities: name -> channels, or `Modality`.
        classes: K.
        config: the settings; or keywords, see `ForestSettings`.

    Raises:
        SettingsError: for an unknown or wrong setting.
        ModelError: if the modalities cannot be used.

    `fit` grows the trees on batches of images, name -> (B, C, H * zoom, W * zoom), and targets, (B, H - 2 halo,
    W - 2 halo) uint8 with classes or 255; `forward` takes images of any size, NaN where there is no data, and returns
    logits, the logarithm of each class's fraction of the votes, with about one vote in all added to each, (B, K, H - 2
    halo, W - 2 halo).

    >>> import torch, landfuse as lf
    >>> forest = lf.models.Forest({"s2": 10}, classes=2, trees=5, context=[3])
    >>> patches = torch.rand(100, 10, 3, 3)
    >>> forest.fit([({"s2": patches}, (patches[:, 0, 1:2, 1:2] > 0.5).to(torch.uint8))], seed=0)
    {}
    >>> forest({"s2": torch.rand(1, 10, 50, 70)}).shape
    torch.Size([1, 2, 48, 68])
    """

    Settings = ForestSettings
    Tables = pixel_tables.Forest

    def __init__(
        self,
        modalities: Mapping[str, int | Modality],
        classes: int,
        config: ForestSettings | None = None,
        **keywords: Any,
    ) -> None:
        self_config = settings_of(ForestSettings, config, keywords)
        nodes, share = (self_config.trees, 1), np.full((self_config.trees, 1, classes), 1 / classes, np.float32)
        super().__init__(modalities, classes, self_config, pixel_tables.Forest(*_no_nodes(nodes), share))
        self.config = self_config

    def learn(self, pixels: Pixels, seed: int, validation: Pixels, epochs: int | None) -> pixel_tables.Forest:
        grown = RandomForestClassifier(
            self.config.trees,
            max_depth=self.config.depth,
            min_samples_leaf=self.config.leaf,
            max_features=self.config.features,
            class_weight="balanced" if self.config.balanced else None,
            n_jobs=-1,
            random_state=seed,
        ).fit(*pixels)
        trees = [estimator.tree_ for estimator in grown.estimators_]
        branches, feature, threshold = _nodes(
            [
                (one.children_left < 0, one.children_left, one.children_right, one.feature, one.threshold)
                for one in trees
            ]
        )
        share = np.zeros((*feature.shape, self.classes), np.float32)
        for number, tree in enumerate(trees):
            value = tree.value[:, 0, :]
            share[number, : len(value)][:, grown.classes_.astype(int)] = value / value.sum(axis=1, keepdims=True)
        # A class without a vote is not impossible: about one vote in all is added. As powers of two sums stay exact.
        share += np.float32(0.5 ** np.ceil(np.log2(len(trees))))
        depth = np.array(max(tree.max_depth for tree in trees), np.int32)
        return pixel_tables.Forest(branches, feature, threshold, depth, share)


def _no_nodes(
    shape: tuple[int, int],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """The fields of `Nodes` of trees that are not grown."""
    branches, feature = np.zeros((*shape, 2), np.int32), np.zeros(shape, np.int32)
    return branches, feature, np.zeros(shape, np.float32), np.array(0, np.int32)


def _nodes(
    trees: Sequence[tuple[NDArray[Any], ...]],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Branches, features and thresholds of grown trees in tables of equal length.

    Args:
        trees: of each node whether it is a leaf, its left and right, the feature, and the threshold.
    """
    branches, feature, threshold = _no_nodes((len(trees), max(len(leaf) for leaf, *_ in trees)))[:3]
    for number, (leaf, left, right, compared, limit) in enumerate(trees):
        own = np.arange(len(leaf))
        branches[number, own, 0] = np.where(leaf, own, left)
        branches[number, own, 1] = np.where(leaf, own, right)
        feature[number, own] = np.where(leaf, 0, compared)
        threshold[number, own] = _split_at(limit)
    return branches, feature, threshold


class Boosted(PixelModel):
    """Gradient-boosted trees on a pixel and its surroundings, which take missing values as they are.

    Args:
        modalities: name -> channels, or `Modality`.
        classes: K.
        config: the settings; or keywords, see `BoostedSettings`.

    Raises:
        SettingsError: for an unknown or wrong setting.
        ModelError: if the modalities cannot be used.

    Images as in `Forest`, logits (B, K, H, W); `fit` stops by the validation samples, where there are any, and returns
    its rounds as `epochs`.

    >>> import landfuse as lf
    >>> lf.models.Boosted({"s2": 10}, classes=2).classes
    2
    """

    Settings = BoostedSettings
    Tables = pixel_tables.Boosted
    takes_dropped = True

    def __init__(
        self,
        modalities: Mapping[str, int | Modality],
        classes: int,
        config: BoostedSettings | None = None,
        **keywords: Any,
    ) -> None:
        self.rounds = 0
        own = settings_of(BoostedSettings, config, keywords)
        leaves = np.zeros((0, 1), np.float32), np.zeros(0, np.int32), np.zeros(classes, np.float32)
        super().__init__(modalities, classes, own, pixel_tables.Boosted(*_no_nodes((0, 1)), *leaves))
        self.config = own

    def fit(self, samples: Batches, seed: int, validation: Batches = (), epochs: int | None = None) -> dict[str, Any]:
        super().fit(samples, seed, validation, epochs)
        return {"epochs": self.rounds}

    def learn(self, pixels: Pixels, seed: int, validation: Pixels, epochs: int | None) -> pixel_tables.Boosted:
        _check_classes(pixels, "boosted")
        known = np.isin(validation.y, pixels.y)
        held_out = {"X_val": validation.x[known], "y_val": validation.y[known]} if known.any() and not epochs else {}
        grown = HistGradientBoostingClassifier(
            learning_rate=self.config.rate,
            max_iter=epochs or self.config.rounds,
            max_leaf_nodes=self.config.leaves,
            min_samples_leaf=self.config.leaf,
            l2_regularization=self.config.ridge,
            class_weight="balanced" if self.config.balanced else None,
            early_stopping=bool(held_out),
            n_iter_no_change=self.config.patience,
            random_state=seed,
        ).fit(*pixels, **held_out)
        self.rounds = grown.n_iter_
        classes = grown.classes_.astype(np.int32)
        start = np.full(self.classes, UNSEEN, np.float32)
        # Of two classes scikit-learn boosts the second one's logit, that of the first stays 0.
        start[classes] = 0
        boosted = classes[-len(grown._predictors[0]) :]
        start[boosted] = grown._baseline_prediction.ravel()
        trees = [(place, tree.nodes) for one in grown._predictors for place, tree in zip(boosted, one, strict=True)]
        grown_nodes, depth = [], np.array(0, np.int32)
        for _, nodes in trees:
            right = np.where(nodes["missing_go_to_left"], 0, pixels.x.shape[1])  # see `pixel_tables.Boosted`
            compared = nodes["feature_idx"] + right, nodes["num_threshold"]
            grown_nodes.append((nodes["is_leaf"].astype(bool), nodes["left"], nodes["right"], *compared))
            depth = np.maximum(depth, nodes["depth"].max().astype(np.int32))
        branches, feature, threshold = _nodes(grown_nodes)
        value = np.zeros(feature.shape, np.float32)
        for number, (_, nodes) in enumerate(trees):
            value[number, : len(nodes)] = np.where(nodes["is_leaf"], nodes["value"], 0)
        target = np.array([place for place, _ in trees], np.int32)
        return pixel_tables.Boosted(branches, feature, threshold, depth, value, target, start)


class Logistic(PixelModel):
    """Logistic regression on standardised features of a pixel, its surroundings, or a denoiser.

    Args:
        modalities: name -> channels, or `Modality`; diffusion features are named `diffusion_1` to `diffusion_3`.
        classes: K.
        config: the settings; or keywords, see `LogisticSettings`.

    Raises:
        SettingsError: for an unknown or wrong setting.
        ModelError: if the modalities cannot be used, or `features: diffusion` finds none.

    Images as in `Forest`, logits (B, K, H, W).

    >>> import landfuse as lf
    >>> lf.models.Logistic({"s2": 10}, classes=2).classes
    2
    """

    Settings = LogisticSettings
    Tables = pixel_tables.Logistic

    def __init__(
        self,
        modalities: Mapping[str, int | Modality],
        classes: int,
        config: LogisticSettings | None = None,
        **keywords: Any,
    ) -> None:
        own = settings_of(LogisticSettings, config, keywords)
        none = np.zeros(0, np.float32)
        blank = (np.zeros(0, np.int32), none, none, np.zeros((classes, 0), np.float32), np.zeros(classes, np.float32))
        super().__init__(modalities, classes, own, pixel_tables.Logistic(*blank))
        self.config = own
        if own.features == "diffusion" and not any(map(_is_diffusion, self.modalities)):
            raise ModelError(
                f"`logistic` is to see diffusion features only, and gets {', '.join(self.modalities)}",
                "`pretrain:` and `features:` in the recipe, which make diffusion_1, diffusion_2 and diffusion_3",
                "add them, or set model.features=context",
            )

    def learn(self, pixels: Pixels, seed: int, validation: Pixels, epochs: int | None) -> pixel_tables.Logistic:
        _check_classes(pixels, "logistic")
        used = np.ones(pixels.x.shape[1], bool)
        if self.config.features == "diffusion":
            widths = {name: one.channels * (1 if one.zoom == 1 else 2) for name, one in self.modalities.items()}
            used = np.repeat([_is_diffusion(name) for name in widths], list(widths.values()))
        place = np.flatnonzero(used).astype(np.int32)
        scaler = StandardScaler().fit(pixels.x[:, place].astype(np.float64))
        model = LogisticRegression(
            C=self.config.inverse_penalty,
            class_weight="balanced" if self.config.balanced else None,
            max_iter=self.config.steps,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(scaler.transform(pixels.x[:, place].astype(np.float64)), pixels.y)
        if any(issubclass(one.category, ConvergenceWarning) for one in caught):
            log.warning("`logistic` has not converged after %d steps; model.steps allows more", model.max_iter)
        weight, bias = np.zeros((self.classes, len(place)), np.float32), np.full(self.classes, UNSEEN, np.float32)
        bias[model.classes_] = 0
        last = model.classes_[-len(model.coef_) :]  # of two classes only the second has a weight
        weight[last], bias[last] = model.coef_, model.intercept_
        return pixel_tables.Logistic(
            place, scaler.mean_.astype(np.float32), scaler.scale_.astype(np.float32), weight, bias
        )


def _is_diffusion(name: str) -> bool:
    return DIFFUSION_LEVEL.fullmatch(name) is not None


def _check_classes(pixels: Pixels, name: str) -> None:
    if len(np.unique(pixels.y)) < 2:
        raise ModelError(
            f"all training pixels that have data are of one class, and `{name}` separates classes",
            "two classes or more",
            "check labels, nodata and the split",
        )
