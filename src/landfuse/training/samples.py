"""Where the wings meet: windows of scenes become tensors.

All randomness lives in `Draws`, in the main process: which windows, how flipped and turned. Fetching them is then
plain indexing, so the batches are the same for any number of loader workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from landfuse.errors import SettingsError, SplitError
from landfuse.legend import UNLABELLED
from landfuse.settings import Settings, byte_count
from landfuse.views.store import Store

Chance = Annotated[float, Field(ge=0, lt=1)]


class SampleSettings(Settings):
    """How training sees the scene.

    Args:
        batch: windows per step at most (over all devices); the steps of an epoch share its windows evenly.
        windows: windows per epoch; by default as many as it takes to see each training pixel about once.
        balanced: draw every class equally often, however rare.
        augment: flip and turn by quarters, alike in all modalities.
        modality_dropout: how often a sample goes without a modality, 0..1: one number, or by name, e.g. `{sar: 0.2}`.
            Never without all of them. The model then learns to map where such a modality has no data.
        memory: scenes up to this size (as float32, after the pixel maps) are held in memory, larger ones are read
            by blocks.
        workers: loader processes; 0 reads in the training process, best for scenes in memory.
    """

    batch: int = Field(default=64, ge=1)
    windows: int | None = Field(default=None, ge=1)
    balanced: bool = False
    augment: bool = True
    modality_dropout: Chance | dict[str, Chance] = 0.0
    memory: int = 4 * 1024**3
    workers: int = Field(default=0, ge=0)

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, value: str | int) -> int:
        return byte_count(value)


class Sample(NamedTuple):
    """One batch.

    Args:
        images: name -> (B, C, view * zoom, view * zoom) float32, mapped; where there is no data, 0, or NaN for a
            modality that may be dropped, as where it is.
        target: (B, core, core) uint8, classes or `UNLABELLED`.
    """

    images: dict[str, Tensor]
    target: Tensor


class Samples(Dataset[Sample]):
    """Batches of windows.

    Indexing takes a table of draws, (B, 4) int64: scene, row, column (of the core's first pixel), and how: the turn
    (0..7), plus 8 times the modalities that are dropped, a bit for each in their order. If that is negative, the row
    only fills up the batch, and its target is unlabelled.

    Args:
        store: what is gathered from.
        targets: (H, W) uint8 per scene: classes, `UNLABELLED` where a pixel does not count.
        view: side of the view, px.
        core: side of the core, px.
    """

    def __init__(self, store: Store, targets: Sequence[NDArray[np.uint8]], view: int, core: int) -> None:
        self.store, self.targets, self.view, self.core = store, list(targets), view, core

    def __getitem__(self, draws: NDArray[np.int64]) -> Sample:
        """Fetches the batch that a table of draws describes."""
        table = torch.as_tensor(draws)
        how = table[:, 3].clamp(min=0)
        halo = (self.view - self.core) // 2
        images: dict[str, Tensor] = {}
        target = torch.empty((len(table), self.core, self.core), dtype=torch.uint8)
        for members, scene, patchwork in self.store.grouped(table[:, :3]):
            rows, cols, turns = table[members, 1], table[members, 2], how[members] % 8
            views = patchwork.views(rows - halo, cols - halo, self.view, turns)
            squares = patchwork.targets(self.targets[scene], rows, cols, self.core, turns)
            if len(members) == len(table):
                images, target = views, squares
                break
            for name, view in views.items():
                if name not in images:
                    shape = (len(table), *view.shape[1:])
                    images[name] = torch.empty(shape, memory_format=torch.channels_last)
                images[name][members] = view
            target[members] = squares
        dropped = how // 8
        if dropped.any():
            target = target.masked_fill(~self._drop(images, dropped), UNLABELLED)
        return Sample(images, target.masked_fill((table[:, 3] < 0)[:, None, None], UNLABELLED))

    def _drop(self, images: dict[str, Tensor], dropped: Tensor) -> Tensor:
        """Takes modalities out of images, and tells at which core pixels anything is left: (B, core, core)."""
        core, halo = self.core, (self.view - self.core) // 2
        seen = torch.zeros((len(dropped), core, core), dtype=torch.bool)
        for bit, name in enumerate(self.store.pixel_maps):
            image = images[name]
            image[(dropped >> bit & 1).bool()] = torch.nan
            zoom = image.shape[-1] // self.view
            inside = slice(halo * zoom, (halo + core) * zoom)
            known = image[:, 0, inside, inside].isfinite()
            seen |= known.view(len(dropped), core, zoom, core, zoom).any(dim=4).any(dim=2)
        return seen


class Draws(Sampler[NDArray[np.int64]]):
    """Which windows make up an epoch, batch by batch.

    Training draws labelled pixels (each once per epoch, or each class equally often), puts a core at a random place
    over each, and drops modalities; validation walks the lattice and drops none. Every rank of several gets its share
    of each batch.

    Args:
        samples: what is drawn from.
        settings: batch, windows, balanced, augment, modality_dropout.
        train: draw at random, else walk the lattice once.
        seed: of the draws; epoch e uses (seed, e).
        rank: of this process.
        ranks: number of processes.

    Raises:
        SplitError: if no pixel is labelled.
        SettingsError: if modalities cannot be dropped as the settings say.
    """

    def __init__(
        self, samples: Samples, settings: SampleSettings, *, train: bool, seed: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        self.samples, self.settings, self.train, self.seed = samples, settings, train, seed
        self.rank, self.ranks, self.epoch = rank, ranks, 0
        places = []
        for number, target in enumerate(samples.targets):
            rows, cols = np.nonzero(target != UNLABELLED)
            places.append(np.stack([np.full_like(rows, number), rows, cols, target[rows, cols]], axis=1))
        self._pixels = np.concatenate(places).astype(np.int64)  # (P, 4): scene, row, column, class
        if not len(self._pixels):
            raise SplitError("no labelled pixel is left to draw from", "labelled pixels", "check labels and split")
        names = list(samples.store.pixel_maps)
        chances = dropout_of(settings.modality_dropout, names)
        self._patterns = patterns([chances.get(name, 0.0) for name in names]) if chances else None
        self._walk = np.empty((0, 4), dtype=np.int64) if train else self._lattice()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose draws come next."""
        self.epoch = epoch

    def _lattice(self) -> NDArray[np.int64]:
        """The windows of the lattice whose core holds a labelled pixel."""
        core = self.samples.core
        cores = self._pixels[:, :3].copy()
        cores[:, 1:] = cores[:, 1:] // core * core
        cores = np.unique(cores, axis=0)
        return np.concatenate([cores, np.zeros((len(cores), 1), dtype=np.int64)], axis=1)

    @property
    def windows(self) -> int:
        """Windows per epoch, over all ranks."""
        if not self.train:
            return len(self._walk)
        return self.settings.windows or max(1, -(-len(self._pixels) // self.samples.core**2))

    def __len__(self) -> int:
        return -(-self.windows // self.settings.batch)

    def _epoch(self) -> NDArray[np.int64]:
        if not self.train:
            return self._walk
        rng = np.random.default_rng((self.seed, self.epoch))
        count, core = self.windows, self.samples.core
        if self.settings.balanced:
            order = np.argsort(self._pixels[:, 3], kind="stable")
            _, starts, sizes = np.unique(self._pixels[order, 3], return_index=True, return_counts=True)
            kind = rng.permutation(np.arange(count) % len(sizes))
            chosen = order[starts[kind] + rng.integers(0, sizes[kind])]
        else:
            rounds = -(-count // len(self._pixels))
            chosen = np.concatenate([rng.permutation(len(self._pixels)) for _ in range(rounds)])[:count]
        draws = self._pixels[chosen].copy()
        draws[:, 1:3] -= rng.integers(0, core, size=(count, 2))
        draws[:, 3] = rng.integers(0, 8, size=count) if self.settings.augment else 0
        if self._patterns is not None:
            draws[:, 3] += 8 * rng.choice(len(self._patterns), size=count, p=self._patterns)
        return draws

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        # Batches of even size: a last one of a single window would have no variance to normalise by.
        for batch in np.array_split(self._epoch(), len(self)):
            share = -(-len(batch) // self.ranks)
            part = batch[self.rank * share : (self.rank + 1) * share]
            if len(part) < share:  # every rank takes every step, and with a batch of the same size
                filler = np.repeat(batch[:1], share - len(part), axis=0)
                filler[:, 3] = -1
                part = np.concatenate([part, filler])
            yield part


def loader(samples: Samples, draws: Draws) -> DataLoader[Sample]:
    """A loader of whole batches; the sampler's tables of draws are its indices."""
    workers = draws.settings.workers
    return DataLoader(
        samples,
        sampler=draws,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def dropout_of(wanted: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The probability of each modality that may be dropped; those at 0 are left out.

    Args:
        wanted: one number for all, or name -> probability.
        names: the model's modalities.

    Raises:
        SettingsError: if a name is unknown, or one modality would not always be left.
    """
    chosen = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(names, wanted)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise SettingsError(
            f"samples.modality_dropout names the modality {', '.join(unknown)}",
            f"those of the recipe: {', '.join(names)}",
            "mend it",
        )
    chosen = {name: chance for name, chance in chosen.items() if chance}
    if chosen and sum(1 - chosen.get(name, 0.0) for name in names) <= 1:
        raise SettingsError(
            f"samples.modality_dropout asks to drop {', '.join(f'{n} at {c:g}' for n, c in chosen.items())}",
            "probabilities that leave one modality in every sample: their sum below the number of modalities less 1",
            "lower them" if len(names) > 1 else "set samples.modality_dropout=0: a single modality cannot be dropped",
        )
    return chosen


def patterns(chances: Sequence[float]) -> NDArray[np.float64]:
    """How often each set of modalities is dropped.

    Args:
        chances: M probabilities, each below 1, whose sum is below M - 1 (or all 0).

    Returns:
        (2^M,): entry s is the probability that exactly the modalities whose bit is set in s are dropped. The last, all
        of them, is 0, and modality m is dropped with probability `chances[m]`.
    """
    p = np.asarray(chances, np.float64)
    raised = p + _redrawn(p) * (1 - p)
    bits = np.arange(1 << p.size)[:, None] >> np.arange(p.size) & 1
    share = np.where(bits, raised, 1 - raised).prod(axis=1)
    share[-1] = 0.0
    return np.asarray(share / share.sum())


def _redrawn(p: NDArray[np.float64]) -> float:
    """c, the share of draws in which all are dropped and which are drawn anew.

    With the raised chances q = p + c (1 - p), what is left after redrawing is (q - c) / (1 - c) = p if c is their
    product. That equation in c is convex and above 0 at c = 0: Newton's steps from there rise to its least root.
    """
    c = 0.0
    for _ in range(100):
        q = p + c * (1 - p)
        rest = float(q.prod()) - c
        slope = sum((1 - p[m]) * math.prod(np.delete(q, m)) for m in range(p.size)) - 1
        step = rest / slope if rest else 0.0
        if abs(step) < 1e-16:
            break
        c -= step
    return c
