"""Export: a run on a frozen encoder in a file, its small bundle, and bundles that need no other file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
import yaml
from torch import Tensor
from typer.testing import CliRunner

from landfuse.bundles.bundle import Bundle
from landfuse.bundles.bundle_files import load_bundle
from landfuse.bundles.description import ModelSpec
from landfuse.cli.commands import app
from landfuse.errors import BundleError, MissingFileError, ModelError, OutputError
from landfuse.interop.export import export
from landfuse.layers.vit_encoder import StackedEncoder
from landfuse.legend import LandClass, Legend
from landfuse.scenes.scene import ModalityInfo
from landfuse.training.recipe import read_recipe
from landfuse.training.train import train
from landfuse.views.pixel_map import PixelMap

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "window_size": 3, "global_attn_indexes": [1]}


def encoder_file(path: Path, seed: int) -> Path:
    """Random weights in the layout of Segment Anything's own checkpoints, 128 px wide."""
    torch.manual_seed(seed)
    vit = StackedEncoder("samvit_base_patch16", 128, TINY).vit
    state = {}
    for name, tensor in vit.state_dict().items():
        for ours, theirs in ((".mlp.fc1.", ".mlp.lin1."), (".mlp.fc2.", ".mlp.lin2.")):
            name = name.replace(ours, theirs)
        state[f"image_encoder.{name}"] = torch.randn_like(tensor) * 0.1 if "pos" in name else tensor
    torch.save(state | {"prompt_encoder.x": torch.zeros(2)}, path)
    return path


@pytest.fixture(scope="module")
def runs(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of two steps per mechanism, and `sam.pth` beside them, which their bundles refer to."""
    folder = tmp_path_factory.mktemp("runs")
    encoder = encoder_file(folder / "sam.pth", 0)
    found = {}
    for finetune in ("lora", "adapter"):
        values = {
            "scene": str(place / "scene.yaml"),
            "model": {
                "name": "mfnet",
                "weights": str(encoder),
                "encoder_options": TINY,
                "finetune": finetune,
                "view": 32,
                "core": 16,
                "decoder_features": 8,
            },
            "samples": {"batch": 4, "windows": 8},
            "training": {"epochs": 1, "precision": "float32", "rate": 0.05},
            "run": str(folder / finetune),
        }
        (folder / f"{finetune}.yaml").write_text(yaml.safe_dump(values))
        train(read_recipe(folder / f"{finetune}.yaml"), progress=False)
        found[finetune] = folder / finetune
    return found


def logits(classifier: Bundle) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    images = {name: torch.rand(2, n.bands, 32, 32, generator=generator) for name, n in classifier.inputs.items()}
    with torch.no_grad():
        return classifier(images)


@pytest.fixture
def hidden(runs: dict[str, Path]) -> Path:
    """The encoder's file, which may be moved away or replaced within a test."""
    path = runs["lora"].parent / "sam.pth"
    shutil.copy(path, path.with_suffix(".kept"))
    yield path
    path.with_suffix(".kept").replace(path)


@pytest.mark.parametrize("finetune", ["lora", "adapter"])
def test_an_exported_bundle_needs_no_encoder_and_scores_bit_for_bit_the_same(
    runs: dict[str, Path], hidden: Path, tmp_path: Path, finetune: str
) -> None:
    before = logits(load_bundle(runs[finetune]))
    done = export(runs[finetune], tmp_path / "whole")
    assert not done.whole
    assert not done.folded
    small = (runs[finetune] / "bundle" / "model.safetensors").stat().st_size
    in_file = hidden.stat().st_size
    assert (tmp_path / "whole" / "model.safetensors").stat().st_size > small + 0.5 * in_file
    hidden.unlink()
    assert torch.equal(logits(load_bundle(tmp_path / "whole")), before)
    again = export(tmp_path / "whole", tmp_path / "copy")
    assert again.whole
    assert torch.equal(logits(load_bundle(tmp_path / "copy")), before)


def test_a_merged_bundle_scores_the_same_up_to_rounding(runs: dict[str, Path], hidden: Path, tmp_path: Path) -> None:
    before = logits(load_bundle(runs["lora"]))
    trained = load_bundle(runs["lora"]).model.encoder.vit.blocks[0].attn.qkv
    assert trained.up.abs().max() > 0, "two steps left LoRA as it started; merging would then be no test"
    done = export(runs["lora"], tmp_path / "merged", merge=True)
    assert {name.rpartition(".")[2] for name in done.folded} == {"qkv"}
    assert {name.rpartition(".")[2] for name in done.kept} == {"fc1", "fc2"}
    hidden.unlink()
    after = load_bundle(tmp_path / "merged")
    assert not hasattr(after.model.encoder.vit.blocks[0].attn.qkv, "up")
    torch.testing.assert_close(logits(after), before, atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="no low-rank update that could be folded"):
        export(tmp_path / "merged", tmp_path / "twice", merge=True)


def test_the_command_says_what_was_folded_and_what_was_not(runs: dict[str, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(runs["lora"]), "--merge", "-o", str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    assert "folded into its weights: 2 layers (qkv)" in result.output
    assert "not folded: 4 layers (fc1, fc2)" in result.output
    assert f"bundle: {tmp_path / 'merged'}" in result.output


def test_a_bundle_without_its_encoders_file_says_which_one_it_needs(runs: dict[str, Path], hidden: Path) -> None:
    known = json.loads((runs["lora"] / "bundle" / "model.json").read_text())["frozen"]
    hidden.unlink()
    with pytest.raises(MissingFileError) as raised:
        load_bundle(runs["lora"])
    assert f"the bundle {runs['lora'] / 'bundle'} refers to frozen weights that are not here" in raised.value.found
    assert str(hidden) in raised.value.found
    assert known["sha256"] in raised.value.expected
    assert "landfuse export" in raised.value.do


def test_a_bundle_with_another_encoders_file_is_refused(runs: dict[str, Path], hidden: Path) -> None:
    known = json.loads((runs["lora"] / "bundle" / "model.json").read_text())["frozen"]
    encoder_file(hidden, 1)
    with pytest.raises(BundleError) as raised:
        load_bundle(runs["lora"])
    assert f"other frozen weights than those of {hidden}" in raised.value.found
    assert f"the SHA-256 {known['sha256']}" in raised.value.expected


def test_mistakes_are_reported_in_words(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no low-rank update that could be folded(.|\n)*leave out --merge"):
        export(runs["adapter"], tmp_path / "merged", merge=True)
    for place in (runs["lora"], runs["lora"] / "bundle"):
        with pytest.raises(OutputError, match="would take the place of"):
            export(runs["lora"], place)
    with pytest.raises(BundleError, match="holds no bundle"):
        export(tmp_path / "nowhere", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "merged").exists()


def test_files_of_this_machine_are_named_without_their_folders(tmp_path: Path) -> None:
    """What training started from is in the bundle's settings, and never read again."""
    infos = {"a": ModalityInfo(3, "float32", "", 1)}
    settings = {"view": 32, "core": 16, "architecture": "FPN", "encoder": "tu-test_resnet"}
    legend = Legend((LandClass("one", 1, "#000000"), LandClass("two", 2, "#ffffff")))
    made = Bundle(ModelSpec("stacked", settings), {"a": PixelMap(torch.ones(3), torch.zeros(3))}, infos, legend)
    made.spec = ModelSpec("stacked", {**settings, "weights": "/data/me/encoder.pth"})
    made.save(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "bundle", pt2=tmp_path / "model.pt2")
    text = (tmp_path / "bundle" / "model.json").read_text()
    assert json.loads(text)["model"]["settings"]["weights"] == "encoder.pth"
    with ZipFile(tmp_path / "model.pt2") as parts:
        assert not any(b"/data/me" in parts.read(name) for name in parts.namelist())
    images = {"a": torch.rand(2, 3, 32, 32)}
    with torch.no_grad():
        assert torch.equal(load_bundle(tmp_path / "bundle")(images), made.eval()(images))
