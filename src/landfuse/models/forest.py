"""A random forest on single pixels: the honest floor of this field.

Source: Breiman 2001, doi 10.1023/A:1010933404324. scikit-learn grows the trees; they are kept as tables of nodes, so
that the bundle holds numbers only and mapping needs no scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from landfuse.errors import ModelError
from landfuse.legend import UNLABELLED
from landfuse.models.base import DirectFit, Modality, settings_of
from landfuse.models.settings import ForestSettings

_PIXELS_AT_ONCE = 1 << 13
_STEPS = 6


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
    classes or 255; `forward` takes images of any size and returns the logarithm of probabilities, (B, K, H, W).

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

    branches: Tensor  # (T, nodes, 2) left and right; a leaf is its own child
    feature: Tensor  # (T, nodes) channel that is compared
    threshold: Tensor  # (T, nodes) go left if <=
    share: Tensor  # (T, nodes, K) fraction of training pixels of each class
    depth: Tensor  # steps from any root to its deepest leaf

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name in ("branches", "feature", "threshold", "share"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _channels(self, images: dict[str, Tensor]) -> Tensor:
        """(B * H * W, C) of all modalities, from (B, C, H * zoom, W * zoom)."""
        columns = []
        for name, modality in self.modalities.items():
            cells = images[name].unflatten(3, (-1, modality.zoom)).unflatten(2, (-1, modality.zoom))
            image = cells.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(0, 2)  # (B * H * W, C, zoom * zoom)
            columns.append(image.mean(dim=2))
            if modality.zoom > 1:
                columns.append(image.std(dim=2))
        return torch.cat(columns, dim=1)

    def fit(self, samples: Iterable[tuple[dict[str, Tensor], Tensor]], seed: int) -> None:
        """Grows the trees on all labelled pixels.

        Raises:
            ModelError: if no pixel is labelled.
        """
        pixels, classes = [], []
        for images, target in samples:
            known = target.flatten() != UNLABELLED
            pixels.append(self._channels(images)[known].numpy())
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
        self.branches, self.feature = torch.from_numpy(children), torch.from_numpy(feature)
        self.threshold, self.share = torch.from_numpy(threshold), torch.from_numpy(share)
        self.depth = torch.tensor(max(tree.max_depth for tree in trees), dtype=torch.int32)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        """Log of the mean probability of each class over the trees, (B, K, H, W)."""
        height, width = self.size_of(images)
        pixels = self._channels(images)
        probabilities = torch.cat([self._probabilities(part) for part in pixels.split(_PIXELS_AT_ONCE)])
        return probabilities.clamp(min=1e-6).log().unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)

    def _probabilities(self, pixels: Tensor) -> Tensor:
        count, channels = pixels.shape
        values = pixels.contiguous().view(-1)
        total = pixels.new_zeros((count, self.classes))
        first = torch.arange(count, dtype=torch.int32, device=pixels.device) * channels
        for branches, feature, threshold, share in zip(
            self.branches, self.feature, self.threshold, self.share, strict=True
        ):
            leaf = torch.zeros(count, dtype=torch.int32, device=pixels.device)
            moving, node, row = None, leaf, first
            for step in range(int(self.depth)):
                value = values.index_select(0, row + feature.index_select(0, node))
                right = value > threshold.index_select(0, node)
                node = branches.view(-1).index_select(0, 2 * node + right)
                if step % _STEPS == _STEPS - 1:
                    # Most pixels reach their leaf long before the deepest: only the others go on.
                    leaf = node if moving is None else leaf.index_copy(0, moving, node)
                    on = torch.nonzero(branches[:, 0].index_select(0, node) != node).flatten()
                    moving = on if moving is None else moving.index_select(0, on)
                    node, row = node.index_select(0, on), row.index_select(0, on)
                    if not len(on):
                        break
            leaf = node if moving is None else leaf.index_copy(0, moving, node)
            total += share.index_select(0, leaf)
        return total / len(self.branches)
