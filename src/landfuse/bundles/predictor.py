"""What the mapping engine asks of whatever runs a bundle's model; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from landfuse.bundles.description import Description
from landfuse.bundles.settings import PredictorOptions
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene


class About(NamedTuple):
    """What a map's metadata say about the network that made it."""

    architecture: str
    parameters: int
    framework: str
    framework_version: str


class Predictor(Protocol):
    """A model that is ready to label views; several threads may prepare blocks while another computes."""

    @property
    def description(self) -> Description:
        """The bundle without its tensors."""

    @property
    def stand_ins(self) -> Mapping[str, float]:
        """What takes the place of modalities without data, by name; see `Description.stand_ins`."""

    @property
    def view(self) -> int:
        """Side of what is held for each window of a batch, px: the model's view, or 1 where it needs no more; of a
        model of several images per view, of the square of as many pixels."""

    @property
    def marks_missing(self) -> bool:
        """Whether pixels beyond the scene's edges have no data; else they are mirrored."""

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU, whose batches are larger, and whose last bits follow from the place in them."""

    @property
    def channels(self) -> Mapping[str, int]:
        """Numbers that `prepare` makes of each pixel of an input: the channels of its pixel map, in most cases."""

    @property
    def nbytes(self) -> int:
        """Bytes that the weights take in memory."""

    @property
    def about(self) -> About:
        """For metadata."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What the logits follow from beside the scene: hashes, versions, kind of device, precision."""

    def complete(self, scene: Scene) -> Scene:
        """The scene with the inputs that are computed from it."""

    def prepare(self, name: str, values: NDArray[np.float32]) -> Any:
        """Maps the pixels of one input and keeps them where they are needed.

        Args:
            values: (C, height * zoom, width * zoom), NaN where there is no data.
        """

    def logits(
        self, window: Window, prepared: Mapping[str, Any], batches: Iterable[NDArray[np.int64]]
    ) -> Iterator[NDArray[np.float32]]:
        """Labels windows, batch by batch, in their order.

        Args:
            window: the pixels of the scene that were prepared.
            prepared: name -> what `prepare` returned.
            batches: (B, 2) each, first row and column of a core; B is always the same.

        Returns:
            (B, K + layers, core, core) for each batch.
        """


class Model(Protocol):
    """A bundle, whatever runs it."""

    @property
    def description(self) -> Description:
        """All but its tensors."""

    def predictor(self, options: PredictorOptions) -> Predictor:
        """Makes it ready to run.

        Raises:
            SettingsError: if the options do not fit.
        """

    @property
    def digest(self) -> str:
        """SHA-256 of all that it holds."""

    def save(self, folder: str | Path) -> None:
        """Writes its files."""


class ReadyModel:
    """A `Model` for many tiles: it is made ready to run once, with some options."""

    def __init__(self, model: Model, options: PredictorOptions) -> None:
        self._model, self._ready, self.description = model, model.predictor(options), model.description

    def predictor(self, options: PredictorOptions) -> Predictor:
        """What was made ready."""
        return self._ready

    @property
    def digest(self) -> str:
        """See `Model`."""
        return self._model.digest

    def save(self, folder: str | Path) -> None:
        """See `Model`."""
        self._model.save(folder)
