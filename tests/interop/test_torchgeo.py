"""torchgeo's samples as scenes, and landfuse's models in torchgeo's trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import torch
from torch import Tensor

from landfuse.bundles.bundle import build_model
from landfuse.bundles.description import ModelSpec
from landfuse.errors import MissingExtraError, ModelError, SceneError
from landfuse.interop.torchgeo import StackedImages, scenes, segmentation_task, write_scene
from landfuse.legend import UNLABELLED, LandClass, Legend
from landfuse.models.base import FusionModel, Modality
from landfuse.rasters.windows import Window
from landfuse.scenes.check import check
from landfuse.scenes.scene_file import open_scenes

LEGEND = Legend((LandClass("dry", 0, "#AA8844"), LandClass("wet", 3, "#0044AA")))
CHANNELS = {"sar": range(0, 2), "optical": [4, 2]}
SIDE = 12


class Chips:
    """Like a torchgeo `NonGeoDataset`: five channels, and a mask that follows from the first of them."""

    def __init__(self, split: str = "train", count: int = 8) -> None:
        self.count, self.seed = count, {"train": 0, "val": 100, "test": 200}[split]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(self.seed + index)
        image = torch.randn(5, SIDE, SIDE, generator=rng)
        return {"image": image, "mask": (image[0] > 0).long()}


class Placed(Chips):
    """Like a `GeoDataset`: asked by slices of x, y and time, and states its place."""

    def __getitem__(self, query: Any) -> dict[str, Any]:
        sample: dict[str, Any] = {**super().__getitem__(int(query[0].start))}
        sample["mask"] = 3 * sample["mask"]
        return {**sample, "bounds": query, "crs": pyproj.CRS("EPSG:32632")}


QUERIES = [(slice(x, x + 120, 10), slice(500, 620, 10), slice(None)) for x in (0, 120, 240, 360, 480, 600)]


def test_samples_become_scenes_by_naming_channels() -> None:
    data = Placed()
    found = list(scenes(data, CHANNELS, LEGEND, QUERIES[:2]))
    assert [scene.name for scene in found] == ["s00000", "s00001"]
    second, sample = found[1], data[QUERIES[1]]
    assert list(second.modalities) == ["sar", "optical"]
    window = Window(3, 2, 4, 5)
    np.testing.assert_array_equal(second.read("optical", window), sample["image"][[4, 2], 3:7, 2:7].numpy())
    assert second.labels[0, 0] == int(sample["mask"][0, 0] == 3)
    assert second.grid.transform == (10.0, 0.0, 120.0, 0.0, -10.0, 620.0)
    assert "32632" in str(second.grid.crs)


def test_numbers_of_a_mask_can_be_ignored() -> None:
    (scene,) = scenes(Chips(count=1), CHANNELS, LEGEND, ignored=[1])
    assert set(np.unique(scene.labels)) == {0, UNLABELLED}


def test_what_is_wrong_with_a_sample_is_reported() -> None:
    with pytest.raises(SceneError, match="channel 7 is named"):
        list(scenes(Chips(), {"a": [7]}, LEGEND, ignored=[1]))
    with pytest.raises(SceneError, match="the mask of s00000"):
        list(scenes(Chips(), CHANNELS, LEGEND))
    with pytest.raises(SceneError, match="no `image`"):
        list(scenes([{"mask": torch.zeros(2, 2)}], CHANNELS, LEGEND))
    with pytest.raises(SceneError, match="has no sample"):
        write_scene(Chips(), "nowhere", CHANNELS, LEGEND, queries=[])


def test_a_data_set_is_written_as_a_scene(tmp_path: Path) -> None:
    data = Placed()
    path = write_scene(data, tmp_path, CHANNELS, LEGEND, queries=QUERIES, name="chips")
    report = check(path, [(5, 1)])
    assert [str(fault) for fault in report.faults] == []
    assert report.tiles == 6
    assert report.counts["train"].sum() > 0 < report.counts["test"].sum()
    third = open_scenes(path)[2]
    sample = data[QUERIES[2]]
    np.testing.assert_array_equal(third.read("sar", third.grid.window), sample["image"][:2].numpy())
    np.testing.assert_array_equal(LEGEND.to_codes(third.labels), sample["mask"].numpy())


def model(name: str, **settings: Any) -> FusionModel:
    torch.manual_seed(0)
    made = build_model(ModelSpec(name, settings), {"sar": Modality(2), "optical": Modality(2)}, classes=2)
    return made.eval()


@pytest.mark.parametrize(("height", "width"), [(12, 12), (7, 10)])
def test_stacked_images_are_labelled_pixel_by_pixel(height: int, width: int) -> None:
    """Against a plain loop over pixels, each with its own mirrored patch."""
    patch = model("two_branch", view=5, width=4)
    image = torch.randn(2, 5, height, width)
    with torch.inference_mode():
        found = StackedImages(patch, CHANNELS)(image)
        padded = np.pad(image.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="symmetric")
        for row in range(height):
            for col in range(width):
                square = torch.from_numpy(padded[:, :, row : row + 5, col : col + 5].copy())
                one = patch({"sar": square[:, [0, 1]], "optical": square[:, [4, 2]]})
                torch.testing.assert_close(found[:, :, row, col], one[:, :, 0, 0], rtol=1e-4, atol=1e-5)


def test_a_dense_model_sees_its_own_windows() -> None:
    dense = model("stacked", architecture="Unet", encoder="resnet18", view=32, core=32)
    image = torch.randn(1, 5, 32, 64)
    stacked = StackedImages(dense, CHANNELS)
    with torch.inference_mode():
        found = stacked(image)
        for place in (0, 32):
            part = image[..., place : place + 32]
            one = dense({"sar": part[:, [0, 1]], "optical": part[:, [4, 2]]})
            torch.testing.assert_close(found[..., place : place + 32], one, rtol=1e-3, atol=1e-4)
    assert (stacked.classes, stacked.in_channels) == (2, 5)


def test_channels_that_are_not_the_models_are_refused() -> None:
    with pytest.raises(ModelError, match="are named"):
        StackedImages(model("two_branch", view=5, width=4), {"sar": [0], "optical": [1, 2]})


def test_without_torchgeo_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchgeo.trainers", None)
    with pytest.raises(MissingExtraError, match=r'(?s)torchgeo is not installed.*pip install "landfuse\[torchgeo\]"'):
        segmentation_task(StackedImages(model("two_branch", view=3, width=4), CHANNELS))


def test_a_model_learns_in_torchgeos_trainer_and_data_module(tmp_path: Path) -> None:
    pytest.importorskip("torchgeo", reason="the optional extra landfuse[torchgeo] is not installed")
    import lightning
    from torchgeo.datamodules import NonGeoDataModule
    from torchgeo.datasets import NonGeoDataset

    class Data(Chips, NonGeoDataset):
        pass

    class Module(NonGeoDataModule):
        mean, std = torch.tensor(0), torch.tensor(1)  # the images are standardised already

    torch.manual_seed(0)
    stacked = StackedImages(model("two_branch", view=3, width=8, dropout=0.0).train(), CHANNELS)
    task = segmentation_task(stacked, lr=1e-2)
    data = Module(Data, batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=25, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    (scores,) = trainer.test(task, datamodule=data, verbose=False)
    assert scores.get("test_MulticlassAccuracy", scores.get("test_OverallAccuracy")) > 0.85  # its name since 0.10
