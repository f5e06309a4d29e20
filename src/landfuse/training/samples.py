"""Windows of scenes as training samples.

All randomness is in `WindowSampler`, in the main process: which windows, how flipped and turned. Fetching them is
then plain indexing, so the batches are the same for any number of loader workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from landfuse.errors import SettingsError, SplitError
from landfuse.legend import UNLABELLED
from landfuse.settings import bounded_processes
from landfuse.training.settings import SampleSettings
from landfuse.views.store import Store


class Sample(NamedTuple):
    """One batch.

    Args:
        images: name -> (B, C, view * zoom, view * zoom) float32, mapped; where there is no data, 0, or NaN for a
            modality that may be dropped, as where it is.
        target: (B, core, core) uint8, classes or `UNLABELLED`.
    """

    images: dict[str, Tensor]
    target: Tensor


@dataclass(frozen=True)
class Draws:
    """The windows of a batch, or of an epoch, as they were drawn; B of them.

    Args:
        scene: (B,) int64, the tile's number.
        row: (B,) int64, of the core's first pixel.
        col: (B,) int64, likewise.
        turn: (B,) int64, 0..7: how it is flipped and turned.
        dropped: (B, M) bool, which modalities are dropped, in their order.
        dates: (B, T) bool, which dates are dropped: those of the first modality that has some, and so on.
        filler: (B,) bool: the window only fills up the batch, and its target is unlabelled.
    """

    scene: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    turn: NDArray[np.int64]
    dropped: NDArray[np.bool_]
    dates: NDArray[np.bool_]
    filler: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.scene)

    def take(self, places: NDArray[np.intp]) -> Draws:
        """Some of the windows."""
        return Draws(*(getattr(self, field.name)[places] for field in fields(self)))


class Samples(Dataset[Sample]):
    """Batches of windows; indexing takes the `Draws` of a batch.

    Args:
        store: what is gathered from.
        targets: (H, W) uint8 per scene: classes, `UNLABELLED` where a pixel does not count.
    """

    def __init__(self, store: Store, targets: Sequence[NDArray[np.uint8]], view: int, core: int) -> None:
        self.store, self.targets, self.view, self.core = store, list(targets), view, core

    def __getitem__(self, draws: Draws) -> Sample:
        """Fetches a batch."""
        row, col, turn = (torch.as_tensor(values) for values in (draws.row, draws.col, draws.turn))
        halo, count = (self.view - self.core) // 2, len(draws)
        images: dict[str, Tensor] = {}
        target = torch.empty((count, self.core, self.core), dtype=torch.uint8)
        for members, scene, mapped in self.store.grouped(torch.stack([torch.as_tensor(draws.scene), row, col], dim=1)):
            rows, cols, turns = row[members], col[members], turn[members]
            views = mapped.views(rows - halo, cols - halo, self.view, turns)
            squares = mapped.targets(self.targets[scene], rows, cols, self.core, turns)
            if len(members) == count:
                images, target = views, squares
                break
            for name, view in views.items():
                if name not in images:
                    shape = (count, *view.shape[1:])
                    images[name] = torch.empty(shape, device=view.device, memory_format=torch.channels_last)
                images[name][members] = view
            target[members] = squares
        if draws.dropped.any() or draws.dates.any():
            target = target.masked_fill(~self._drop(images, draws), UNLABELLED)
        return Sample(images, target.masked_fill(torch.as_tensor(draws.filler)[:, None, None], UNLABELLED))

    def _drop(self, images: dict[str, Tensor], draws: Draws) -> Tensor:
        """Drops modalities and dates from images and returns at which core pixels any is left: (B, core, core)."""
        core, halo, first = self.core, (self.view - self.core) // 2, 0
        seen = torch.zeros((len(draws), core, core), dtype=torch.bool)
        missing = math.nan if self.store.marks_missing else 0.0
        for number, (name, known) in enumerate(self.store.modalities.items()):
            image, zoom = images[name], known.zoom
            if known.days and draws.dates.size:
                dates = torch.as_tensor(draws.dates[:, first : first + len(known.days)], device=image.device)
                first += len(known.days)
                gone, series = dates.repeat_interleave(known.per_day, 1)[..., None, None], image[:, : known.dated]
                series[:] = torch.where(gone, series * missing, series)  # a product, as what is NaN stays so
            image[torch.as_tensor(draws.dropped[:, number])] = torch.nan
            inside = slice(halo * zoom, (halo + core) * zoom)
            left = image[:, :, inside, inside].isfinite().any(dim=1).cpu()
            seen |= left.view(len(draws), core, zoom, core, zoom).any(dim=4).any(dim=2)
        return seen


class WindowSampler(Sampler[Draws]):
    """Which windows make up an epoch, batch by batch.

    Training draws labelled pixels (each once per epoch, or each class equally often), puts a core at a random place
    over each, and drops modalities and dates; validation walks the lattice and drops none. Every rank of several gets
    its part of each batch.

    Args:
        settings: batch, windows, balanced, augment, modality_dropout, date_dropout.
        train: draw at random, else walk the lattice once.
        seed: of the draws; epoch e uses (seed, e).

    Raises:
        SplitError: if no pixel is labelled.
        SettingsError: if modalities or dates cannot be dropped as the settings say.
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
        self._days = [len(m.days) for m in samples.store.modalities.values() if m.days and settings.date_dropout]
        if settings.date_dropout and not self._days:
            raise SettingsError(
                f"samples.date_dropout is {settings.date_dropout:g}, and no modality has dates for the model",
                "a modality with `dates` in the scene file, whose series is among its `features`, not mixed by `pca`",
                "set samples.date_dropout=0, or correct the scene file or `pixel_maps`",
            )
        self._walk = None if train else self._lattice()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose draws come next."""
        self.epoch = epoch

    def _draws(
        self,
        places: NDArray[np.int64],
        turn: NDArray[np.int64],
        dropped: NDArray[np.bool_],
        dates: Sequence[NDArray[np.bool_]] = (),
    ) -> Draws:
        scene, row, col = (np.ascontiguousarray(column) for column in places.T)
        gone = np.concatenate([np.zeros((len(places), 0), bool), *dates], axis=1)
        return Draws(scene, row, col, turn, dropped, gone, np.zeros(len(places), bool))

    def _lattice(self) -> Draws:
        """The windows of the lattice whose core holds a labelled pixel."""
        core = self.samples.core
        cores = self._pixels[:, :3].copy()
        cores[:, 1:] = cores[:, 1:] // core * core
        cores = np.unique(cores, axis=0)
        none = np.zeros((len(cores), len(self.samples.store.pixel_maps)), bool)
        return self._draws(cores, np.zeros(len(cores), np.int64), none)

    @property
    def windows(self) -> int:
        """Windows per epoch, over all ranks."""
        if self._walk is not None:
            return len(self._walk)
        return self.settings.windows or max(1, -(-len(self._pixels) // self.samples.core**2))

    def __len__(self) -> int:
        return -(-self.windows // self.settings.batch)

    def _epoch(self) -> Draws:
        if self._walk is not None:
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
        places = self._pixels[chosen, :3]
        places[:, 1:] -= rng.integers(0, core, size=(count, 2))
        turn = rng.integers(0, 8, size=count) if self.settings.augment else np.zeros(count, np.int64)
        dropped = np.zeros((count, len(self.samples.store.pixel_maps)), bool)
        if self._patterns is not None:
            pattern = rng.choice(len(self._patterns), size=count, p=self._patterns)
            dropped = (pattern[:, None] >> np.arange(dropped.shape[1]) & 1).astype(bool)
        numbers = [rng.random((count, days)) for days in self._days]
        dates = [one < np.minimum(self.settings.date_dropout, one.max(axis=1, keepdims=True)) for one in numbers]
        return self._draws(places, turn, dropped, dates)

    def __iter__(self) -> Iterator[Draws]:
        epoch = self._epoch()
        # Batches of even size: a last one of a single window would have no variance to normalise by.
        for batch in np.array_split(np.arange(len(epoch)), len(self)):
            each = -(-len(batch) // self.ranks)
            own = batch[self.rank * each : (self.rank + 1) * each]
            # Every rank takes every step, and with a batch of the same size.
            filled = epoch.take(np.concatenate([own, np.repeat(batch[:1], each - len(own))]))
            yield replace(filled, filler=np.arange(each) >= len(own))


def loader(samples: Samples, sampler: WindowSampler) -> DataLoader[Sample]:
    """A loader of whole batches; what the sampler draws are its indices."""
    workers = bounded_processes(sampler.settings.workers, "samples.workers")
    return DataLoader(
        samples,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and samples.store.device.type == "cpu",
    )


def dropout_of(wanted: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The probability of each modality that may be dropped; those at 0 are left out.

    Args:
        wanted: one number for all, or name -> probability.

    Raises:
        SettingsError: if a name is unknown, or one modality would not always be left.
    """
    chosen = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(names, wanted)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise SettingsError(
            f"samples.modality_dropout names the modality {', '.join(unknown)}",
            f"those of the recipe: {', '.join(names)}",
            "correct it",
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
    chance = np.where(bits, raised, 1 - raised).prod(axis=1)
    chance[-1] = 0.0
    return np.asarray(chance / chance.sum())


def _redrawn(p: NDArray[np.float64]) -> float:
    """c, the fraction of draws in which all are dropped and which are drawn again.

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
