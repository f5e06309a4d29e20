"""The linear classifier of a denoiser's features."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from landfuse.diffusion.trained_denoiser import TrainedDenoiser, own_maps
from landfuse.legend import Legend
from landfuse.scenes.split_rules import TEST, TRAIN, VALIDATION
from landfuse.simulate.scene import simulate
from landfuse.training.linear_probe import LinearProbe
from landfuse.training.training_data import TrainingData
from landfuse.views.store import Store


def probed(labels: np.ndarray, roles: np.ndarray, seed: int = 0) -> dict[str, float]:
    scene = dataclasses.replace(simulate(64, 64), read_labels=lambda: labels)
    data = TrainingData([scene], [roles], Legend.of([(1, "low"), (2, "high")]))
    maps = own_maps([scene], [np.ones((64, 64), bool)], list(scene.modalities))
    torch.manual_seed(0)
    denoiser = TrainedDenoiser.untrained(maps, {name: part.zoom for name, part in scene.modalities.items()}, 8)
    return LinearProbe(Store([scene], maps, 32, 1 << 30), data, 32, seed)(denoiser)


def test_it_finds_what_can_be_seen_and_nothing_else() -> None:
    height = simulate(64, 64).read("height", simulate(64, 64).grid.window)[0]
    seen = (height > np.nanmedian(height)).astype(np.uint8)
    roles = np.full((64, 64), TEST, np.uint8)
    roles[:, :28], roles[:, 36:60] = TRAIN, VALIDATION
    found = probed(seen, roles)
    assert found["probe_validation"] > 0.7
    assert found == probed(seen, roles)
    assert found == probed(np.where(roles == TEST, 1 - seen, seen), roles), "labels of the test are not looked at"
    chance = np.random.default_rng(0).integers(0, 2, size=(64, 64)).astype(np.uint8)
    found = probed(chance, roles)
    assert abs(found["probe_validation"] - 0.5) < 0.08
    assert found["probe_training"] > found["probe_validation"]


def test_it_needs_two_classes_and_validation_pixels() -> None:
    labels = np.repeat(np.uint8([0, 1]), 128).reshape(16, 16)
    scene = dataclasses.replace(simulate(16, 16), read_labels=lambda: labels)
    roles = np.full((16, 16), TRAIN, np.uint8)
    assert not LinearProbe.possible(TrainingData([scene], [roles], Legend.of([(1, "low"), (2, "high")])))
    roles[:, 8:] = VALIDATION
    assert LinearProbe.possible(TrainingData([scene], [roles], Legend.of([(1, "low"), (2, "high")])))
    roles[8:, :8] = TEST
    assert not LinearProbe.possible(TrainingData([scene], [roles], Legend.of([(1, "low"), (2, "high")])))
