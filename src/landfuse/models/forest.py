"""A random forest on single pixels: the honest floor of this field.

Source: Breiman 2001, doi 10.1023/A:1010933404324. scikit-learn grows the trees; they are kept as tables of nodes, so
that the bundle holds numbers only and mapping needs neither scikit-learn nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from landfuse.errors import ModelError
from landfuse.legend import UNLABELLED
from landfuse.models.base import DirectFit, Modality, settings_of
from landfuse.models.forest_trees import Trees, channels_of
from landfuse.models.settings import ForestSettings


class Forest(DirectFit):
    """Trees on the stacked channels of a pixel; of a finer modality, its mean and standard deviation.

    Args:
        modalities: name -> channels, or `Modality`.
        classes: K.
        config: the settings; or keywords, see `ForestSettings`.

    Raises:
        SettingsError: for an unknown or wrong setting.
        ModelError: if the modalities cannot be used.

    `fit` grows the trees on batches of images, name -> (B, C, H * zoom, W * zoom), and targets, (B, H, W) uint8 with
    classes or 255; `forward` takes images of any size and returns logits, the logarithm of each class's fraction
    of the votes, with about one vote in all added to each, (B, K, H, W).

    >>> import torch, landfuse as lf
    >>> forest = lf.models.Forest({"s2": 10}, classes=2, trees=5)
    >>> pixels = torch.rand(100, 10, 1, 1)
    >>> forest.fit([({"s2": pixels}, (pixels[:, 0] > 0.5).to(torch.uint8))], seed=0)
    >>> forest({"s2": torch.rand(1, 10, 50, 70)}).shape
    torch.Size([1, 2, 50, 70])
    """

    Settings = ForestSettings

    def __init__(
        self,
        modalities: Mapping[str, int | Modality],
        classes: int,
        config: ForestSettings | None = None,
        **keywords: Any,
    ) -> None:
        config = settings_of(ForestSettings, config, keywords)
        super().__init__(modalities, classes, view=1, core=1)
        self.config = config
        # Shapes are known after `fit`; `_load_from_state_dict` takes over those of a saved forest.
        self.register_buffer("branches", torch.zeros((config.trees, 1, 2), dtype=torch.int32))
        self.register_buffer("feature", torch.zeros((config.trees, 1), dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros((config.trees, 1)))
        self.register_buffer("share", torch.full((config.trees, 1, classes), 1 / classes))
        self.register_buffer("depth", torch.zeros((), dtype=torch.int32))

    branches: Tensor  # of these, see `Trees`
    feature: Tensor
    threshold: Tensor
    share: Tensor
    depth: Tensor

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name in ("branches", "feature", "threshold", "share"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _channels(self, images: Mapping[str, Tensor]) -> NDArray[np.float32]:
        zooms = {name: modality.zoom for name, modality in self.modalities.items()}
        return channels_of({name: images[name].cpu().numpy() for name in zooms}, zooms)

    @property
    def tables(self) -> Trees:
        """The tables as arrays."""
        branches, feature = self.branches.cpu().numpy(), self.feature.cpu().numpy()
        return Trees(branches, feature, self.threshold.cpu().numpy(), self.share.cpu().numpy(), int(self.depth))

    def fit(self, samples: Iterable[tuple[dict[str, Tensor], Tensor]], seed: int) -> None:
        """Grows the trees on all labelled pixels.

        Raises:
            ModelError: if no pixel is labelled.
        """
        pixels, classes = [], []
        for images, target in samples:
            known = target.flatten() != UNLABELLED
            pixels.append(self._channels(images)[known.numpy()])
            classes.append(target.flatten()[known].numpy())
        x, y = np.concatenate(pixels), np.concatenate(classes)
        if not len(y):
            raise ModelError("no training pixel is labelled and has data", "at least one", "check labels and nodata")
        if len(y) > self.config.pixels:
            chosen = np.random.default_rng(seed).choice(len(y), self.config.pixels, replace=False)
            x, y = x[chosen], y[chosen]
        grown = RandomForestClassifier(
            self.config.trees,
            max_depth=self.config.depth,
            min_samples_leaf=self.config.leaf,
            max_features=self.config.features,
            class_weight="balanced" if self.config.balanced else None,
            n_jobs=-1,
            random_state=seed,
        ).fit(x, y)
        self._take(grown)

    def _take(self, grown: RandomForestClassifier) -> None:
        trees = [estimator.tree_ for estimator in grown.estimators_]
        nodes = max(tree.node_count for tree in trees)
        count = len(trees)
        children = np.zeros((count, nodes, 2), dtype=np.int32)
        feature = np.zeros((count, nodes), dtype=np.int32)
        threshold = np.zeros((count, nodes), dtype=np.float32)
        share = np.zeros((count, nodes, self.classes), dtype=np.float32)
        for number, tree in enumerate(trees):
            own = np.arange(tree.node_count)
            leaf = tree.children_left < 0
            children[number, : len(own), 0] = np.where(leaf, own, tree.children_left)
            children[number, : len(own), 1] = np.where(leaf, own, tree.children_right)
            feature[number, : len(own)] = np.where(leaf, 0, tree.feature)
            # scikit-learn compares float32 pixels with float64 thresholds: the next float32 below decides alike.
            exact = tree.threshold
            single = exact.astype(np.float32)
            threshold[number, : len(own)] = np.where(single > exact, np.nextafter(single, np.float32(-np.inf)), single)
            value = tree.value[:, 0, :]
            share[number, : len(own)][:, grown.classes_.astype(int)] = value / value.sum(axis=1, keepdims=True)
        # A class without a vote is not impossible: about one vote in all is added. As powers of two sums stay exact.
        share += np.float32(0.5 ** np.ceil(np.log2(count)))
        self.branches, self.feature = torch.from_numpy(children), torch.from_numpy(feature)
        self.threshold, self.share = torch.from_numpy(threshold), torch.from_numpy(share)
        self.depth = torch.tensor(max(tree.max_depth for tree in trees), dtype=torch.int32)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """Log of the trees' mean vote for each class, (B, K, H, W)."""
        height, width = self.size_of(images)
        logits = torch.from_numpy(self.tables.logits(self._channels(images))).to(self.share.device)
        return logits.unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)
