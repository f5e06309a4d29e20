"""Crops, the steps of a denoiser's training, and its folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from landfuse.diffusion.balance import ModalityBalance, Probe
from landfuse.diffusion.crops import Crops
from landfuse.diffusion.denoiser import DEVIATION
from landfuse.diffusion.denoising import Denoising, run_steps
from landfuse.diffusion.settings import PretrainSettings
from landfuse.diffusion.trained_denoiser import TrainedDenoiser, constant, load_denoiser, own_maps
from landfuse.errors import BundleError, ModelError
from landfuse.rasters.grid import Grid
from landfuse.rasters.windows import Window
from landfuse.scenes.scene import Scene, SceneModality
from landfuse.simulate.scene import SimulatedRaster, simulate
from landfuse.views.store import Store


class Values:
    """A raster's source that holds its array."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values

    def __call__(self, window: Window) -> NDArray[np.float32]:
        return self.values[:, window.row : window.row + window.height, window.col : window.col + window.width].copy()


def scene_of(arrays: dict[str, NDArray[np.float32]], zooms: dict[str, int] | None = None) -> Scene:
    zooms = zooms or dict.fromkeys(arrays, 1)
    first = next(iter(arrays))
    grid = Grid(arrays[first].shape[1] // zooms[first], arrays[first].shape[2] // zooms[first])
    return Scene(
        "made",
        grid,
        {
            name: SceneModality(SimulatedRaster(grid.zoomed(zooms[name]), len(a), Values(a), name), zooms[name])
            for name, a in arrays.items()
        },
        simulate(8, 8).legend,
    )


def whole(scene: Scene) -> list[NDArray[np.bool_]]:
    return [np.ones((scene.grid.height, scene.grid.width), bool)]


def untrained(scene: Scene, base: int = 8, seed: int = 0) -> TrainedDenoiser:
    torch.manual_seed(seed)
    zooms = {name: part.zoom for name, part in scene.modalities.items()}
    return TrainedDenoiser.untrained(own_maps([scene], whole(scene), list(scene.modalities)), zooms, base)


def training(scene: Scene, **changes: object) -> Denoising:
    settings = PretrainSettings.model_validate({"base": 8, "batch": 4, "crop": 16, "steps": 6, **changes})
    denoiser = untrained(scene, seed=settings.seed)
    return Denoising(denoiser, settings, Crops(Store([scene], denoiser.maps, 16, 1 << 30), settings.crop))


RNG = np.random.default_rng(0)


def noisy_scene(bands: int = 4, side: int = 40) -> Scene:
    rng = np.random.default_rng(1)
    return scene_of(
        {
            "hsi": (5 + rng.normal(size=(bands, side, side))).astype(np.float32),
            "height": rng.normal(size=(1, side, side)).astype(np.float32),
        }
    )


# ---- the denoiser's own statistics -----------------------------------------------------------------------------------


def test_maps_standardise_limit_and_mark_what_is_missing() -> None:
    scene = noisy_scene()
    maps = own_maps([scene], whole(scene), ["hsi", "height"])
    values = scene.read("hsi", scene.grid.window)
    values[1, 3, 4] = np.nan
    mapped = maps["hsi"](torch.from_numpy(values).movedim(0, -1))
    assert mapped.shape == (40, 40, 5)
    assert mapped[3, 4].tolist() == [0] * 5
    assert float(mapped[..., 4].sum()) == 40 * 40 - 1
    known = mapped[..., :4][mapped[..., 4] == 1]
    assert float(known.std()) == pytest.approx(DEVIATION, rel=0.02)
    assert float(known.mean()) == pytest.approx(0, abs=0.01)
    assert float(known.abs().max()) == 1, "limited to three deviations"


@pytest.mark.parametrize(("spread", "kept"), [([4.0, 2.0], 3), ([1.0] * 8, 8), ([1.0] * 30, 16)])
def test_many_bands_become_the_components_that_hold_the_variance(spread: list[float], kept: int) -> None:
    rng = np.random.default_rng(2)
    mixed = (rng.normal(size=(3000, len(spread))) * spread) @ np.linalg.qr(rng.normal(size=(30, 30)))[0][: len(spread)]
    mixed += 1e-4 * rng.normal(size=mixed.shape)
    scene = scene_of({"hsi": mixed.T.reshape(30, 50, 60).astype(np.float32)})
    own = own_maps([scene], whole(scene), ["hsi"])["hsi"]
    assert own.channels == kept + 1
    mapped = own(torch.from_numpy(mixed.astype(np.float32)))[:, : min(kept, len(spread))] / DEVIATION
    np.testing.assert_allclose(np.cov(mapped.numpy().T), np.eye(mapped.shape[1]), atol=0.06)


@pytest.mark.parametrize("bands", [1, 24])
def test_a_constant_modality_is_zero_everywhere(bands: int) -> None:
    scene = scene_of(
        {"still": np.full((bands, 16, 16), 0.37, np.float32), "a": RNG.normal(size=(2, 16, 16)).astype(np.float32)}
    )
    maps = own_maps([scene], whole(scene), ["still", "a"])
    assert constant(maps) == ["still"]
    assert not maps["still"](torch.full((5, bands), 0.37))[:, :-1].any()


def test_finer_modalities_are_averaged_to_the_grid() -> None:
    fine = RNG.normal(size=(1, 32, 32)).astype(np.float32)
    fine[0, 0, 0] = np.nan
    scene = scene_of({"fine": fine}, {"fine": 2})
    denoiser = untrained(scene)
    crops = Crops(Store([scene], denoiser.maps, 16, 1 << 30), 16)
    images, missing = denoiser.images(crops.draw((0,), 1, False))
    assert images["fine"].shape == (1, 1, 16, 16)
    assert float(missing["fine"][0, 0, 0, 0]) == 1
    assert float(missing["fine"].sum()) == 1
    own = denoiser.maps["fine"](torch.from_numpy(fine[0, 4:6, 6:8].reshape(4, 1)))[:, 0].mean()
    assert float(images["fine"][0, 0, 2, 3]) == pytest.approx(float(own), abs=1e-6)


# ---- crops -----------------------------------------------------------------------------------------------------------


def test_crops_lie_in_the_scene_and_shrink_with_it() -> None:
    rows = np.arange(40, dtype=np.float32)[None, :, None].repeat(30, axis=2)
    scene = scene_of({"row": rows})
    store = Store([scene], own_maps([scene], whole(scene), ["row"]), 64, 1 << 30)
    assert Crops(store, 64).side == 28, "the largest multiple of 4 within the scene"
    crops = Crops(store, 16)
    seen = crops.draw((1,), 200, False)["row"]
    assert seen.shape == (200, 2, 16, 16)
    assert float(seen[:, -1].min()) == 1
    steps = seen[:, 0, 1:] - seen[:, 0, :-1]
    assert float(steps.min()) > 0, "no crop reaches into the mirror"
    assert seen[:, 0, 0, 0].unique().numel() == 25, "every place comes"
    assert torch.equal(seen, crops.draw((1,), 200, False)["row"])
    assert not torch.equal(seen, crops.draw((2,), 200, False)["row"])


def test_a_scene_smaller_than_the_least_crop_is_mirrored() -> None:
    scene = scene_of({"a": RNG.normal(size=(2, 3, 2)).astype(np.float32)})
    crops = Crops(Store([scene], own_maps([scene], whole(scene), ["a"]), 8, 1 << 30), 32)
    assert crops.side == 4
    assert crops.draw((0,), 3, True)["a"].shape == (3, 3, 4, 4)


def test_only_what_may_be_shown_is_shown() -> None:
    scene = noisy_scene()
    over = np.zeros((40, 40), bool)
    over[30:, 30:] = True
    shown = np.ones((40, 40), bool)
    shown[:, 25:28] = False
    crops = Crops(Store([scene], own_maps([scene], whole(scene), ["hsi"]), 16, 1 << 30), 16, [over], [shown])
    seen = crops.draw((0,), 100, True)["hsi"]
    assert 0.7 < float(seen[:, -1].mean()) < 1
    assert not seen[:, :-1][(seen[:, -1:] == 0).expand(-1, 4, -1, -1)].any()
    with pytest.raises(ModelError, match="no pixel may be shown"):
        Crops(Store([scene], {}, 16, 1 << 30), 16, [np.zeros((40, 40), bool)])


# ---- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["swap", "paper"])
def test_an_interrupted_training_ends_in_the_same_weights(tmp_path: Path, kind: str) -> None:
    balance = {"every": 2, "warmup": 2, "kind": kind}
    scene = noisy_scene()
    straight = training(scene, balance=balance)
    run_steps(straight, 6)
    first = training(scene, balance=balance)
    run_steps(first, 3)
    torch.save(first.state(), tmp_path / "state.pt")
    second = training(scene, balance=balance)
    second.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    run_steps(second, 6)
    assert straight.finished().digest == second.finished().digest
    assert straight.balance.weights == second.balance.weights
    assert straight.balance.masked(6) == second.balance.masked(6)
    assert int(straight.balance.probes) == 2


def test_the_loss_falls_and_rows_hold_the_balance() -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    one = training(simulate(48, 48), steps=20, batch=4, balance={"every": 10, "warmup": 10})
    run_steps(one, 20, lambda step, row: rows.append((step, row)))
    assert [step for step, _ in rows] == [10, 20]
    assert rows[1][1]["loss"] < rows[0][1]["loss"]
    names = {f"{letter}_{name}" for letter in "Drw" for name in ("hsi", "height", "sar")}
    assert names <= rows[1][1].keys()
    assert sum(rows[1][1][f"w_{name}"] for name in ("hsi", "height", "sar")) == pytest.approx(1)


def test_the_mean_weights_lag_behind() -> None:
    one = training(noisy_scene(), steps=3)
    before = [p.detach().clone() for p in one.network.parameters()]
    one.step()
    weight = 2 / 11
    for mean, now, then in zip(one.average.parameters(), one.network.parameters(), before, strict=True):
        torch.testing.assert_close(mean.data, weight * then + (1 - weight) * now.data, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "paper", "swap"])
def test_every_kind_of_balance_takes_its_steps(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped: list[int] = []
    unevenness = ModalityBalance.unevenness

    def counted(self: ModalityBalance, probe: Probe, generator: torch.Generator) -> torch.Tensor:
        swapped.append(one.done)
        return unevenness(self, probe, generator)

    monkeypatch.setattr(ModalityBalance, "unevenness", counted)
    one = training(noisy_scene(), balance={"kind": kind, "every": 2, "warmup": 0}, steps=6)
    run_steps(one, 6)
    assert int(one.balance.probes) == 2
    assert swapped == ([0, 4] if kind == "swap" else [])
    assert any(one.balance.masked(6).values()) is (kind == "paper")
    weights = one.balance.weights
    assert (weights["hsi"] / weights["height"] == pytest.approx(2)) is (kind == "none"), "4 bands to the power of 0.5"


def test_the_swap_loss_is_a_tenth_of_the_loss_by_the_unevenness(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(uneven: float | None) -> float:
        changes = {"kind": "none"} if uneven is None else {"kind": "swap", "warmup": 0}
        if uneven is not None:
            monkeypatch.setattr(ModalityBalance, "unevenness", lambda *_: torch.tensor(uneven))
        return float(training(noisy_scene(), balance=changes).step()["loss"])

    plain = first(None)
    assert first(0.0) == pytest.approx(plain)
    assert first(3.0) == pytest.approx(1.3 * plain, rel=1e-5)


def test_progress_is_reported_at_every_measurement_and_at_the_end() -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    one = training(noisy_scene(), steps=5, balance={"every": 2, "warmup": 0})
    steps: list[dict[str, torch.Tensor]] = []
    step = one.step
    one.step = lambda: (steps.append(step()), steps[-1])[1]  # type: ignore[method-assign]
    run_steps(one, 5, lambda done, row: rows.append((done, row)))
    assert [done for done, _ in rows] == [2, 4, 5]
    for (_, row), part in zip(rows, (steps[:2], steps[2:4], steps[4:]), strict=True):
        for name in ("loss", "denoise_hsi", "denoise_height"):
            assert row[name] == pytest.approx(np.mean([float(one[name]) for one in part]))
    run_steps(one, 5, lambda done, row: rows.append((done, row)))
    assert len(rows) == 3, "nothing is left to do"


def test_bfloat16_learns_much_the_same() -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        one = training(simulate(32, 32), steps=8, precision=precision)
        losses.append([float(one.step()["loss"]) for _ in range(8)])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.03)


def test_a_loss_that_is_not_finite_stops_and_changes_nothing() -> None:
    one, other = training(noisy_scene(), balance={"every": 2}), training(noisy_scene(), balance={"every": 2})
    rows: list[int] = []
    step, height = one.step, one.network.noise_heads["height"]

    def broken() -> dict[str, torch.Tensor]:
        if one.done == 3:
            height.bias.data.fill_(float("nan"))
        return step()

    one.step = broken  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"denoise_height of pre-training step 3 is .*denoise_hsi 0\.\d+"):
        run_steps(one, 6, lambda done, row: rows.append(done))
    assert (one.done, rows) == (2, [2])
    one.step = step  # type: ignore[method-assign]
    for training_ in (one, other):
        run_steps(training_, 6)
    assert one.finished().digest == other.finished().digest


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    made = untrained(noisy_scene(bands=20))
    made.facts = {"steps": 3}
    made.save(tmp_path / "denoiser")
    for folder in (tmp_path, tmp_path / "denoiser"):
        loaded = load_denoiser(folder)
        assert loaded.digest == made.digest
        assert loaded.facts == made.facts
        assert list(loaded.maps) == ["hsi", "height"]
        assert not any(p.requires_grad for p in loaded.parameters())
    assert untrained(noisy_scene(bands=20), seed=1).digest != made.digest


def test_a_folder_of_a_former_version_with_image_heads_loads(tmp_path: Path) -> None:
    made = untrained(noisy_scene())
    made.save(tmp_path)
    path = tmp_path / "denoiser.safetensors"
    tensors = load_file(path)
    for name, channels in (("hsi", 4), ("height", 1)):
        tensors[f"network.image_heads.{name}.weight"] = torch.ones(channels, 8, 3, 3)
        tensors[f"network.image_heads.{name}.bias"] = torch.ones(channels)
    save_file(tensors, path)
    assert load_denoiser(tmp_path).digest == made.digest
    save_file({**tensors, "network.other.bias": torch.ones(1)}, path)
    with pytest.raises(BundleError, match="is broken"):
        load_denoiser(tmp_path)


def test_the_denoiser_of_a_former_run_loads() -> None:
    run = Path(__file__).resolve().parents[1] / "data" / "old" / "runs" / "bdgf"
    tensors = load_file(run / "denoiser" / "denoiser.safetensors")
    assert any(".image_heads." in name for name in tensors)
    found = load_denoiser(run)
    assert list(found.maps) == ["optical", "sar"]
    kept = found.state_dict()
    assert {name for name in tensors if ".image_heads." not in name} == kept.keys()
    assert all(torch.equal(kept[name], tensors[name]) for name in kept)


def test_a_broken_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no denoiser"):
        load_denoiser(tmp_path)
    untrained(noisy_scene()).save(tmp_path)
    words = json.loads((tmp_path / "denoiser.json").read_text())
    (tmp_path / "denoiser.json").write_text(json.dumps({**words, "format": 99}))
    with pytest.raises(BundleError, match="format 99"):
        load_denoiser(tmp_path)
    (tmp_path / "denoiser.json").write_text(json.dumps({**words, "base": 16}))
    with pytest.raises(BundleError, match="is broken"):
        load_denoiser(tmp_path)
