"""REF-Net: parity with the authors' network, its switches, sizes, and mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.errors import LandfuseError, MissingFileError, ModelError, SettingsError
from landfuse.layers.state_space import VSSBlock
from landfuse.legend import UNLABELLED
from landfuse.models.base import Modality
from landfuse.models.refnet import Decoder, RefNet, _each, from_authors, rename_authors
from landfuse.scenes.scene_file import open_scene
from landfuse.settings import parse

TWO = {"optical": Modality(4), "sar": Modality(2)}


def make(modalities: dict[str, Modality] = TWO, classes: int = 5, **values: Any) -> RefNet:
    torch.manual_seed(0)
    return RefNet(modalities, classes, RefNet.Settings(**{"encoder": "resnet18", "width": 8, "view": 64} | values))


def images(model: RefNet, batch: int = 2, height: int = 64, width: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(batch, m.channels, height, width, generator=generator) for name, m in model.modalities.items()
    }


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    path = shared / "golden" / "refnet_decoder.safetensors"
    if not path.exists():
        pytest.skip(f"no golden tensors: {path}")
    return safetensors.torch.load_file(path)


def test_parity_with_the_authors_decoders_and_heads(golden: dict[str, Tensor]) -> None:
    dims, width, classes = [8, 16, 24, 32, 48], 16, 9

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = Decoder([dims, dims], RefNet.Settings(width=width))
            self.head = nn.Conv2d(width, classes, 1)
            self.auxiliary_heads = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in range(2))

    part = Part().eval()
    part.load_state_dict(
        rename_authors({k.removeprefix("state/"): v for k, v in golden.items() if k.startswith("state/")})
    )
    features = [[golden[f"input/{name}_features.{i}"] for i in range(5)] for name in ("opt", "sar")]
    with torch.no_grad():
        fused, enhanced, parts = part.decoder(features)
        maps = {"logits": part.head(fused[-1])}
        for i, name in enumerate(("opt", "sar")):
            maps[f"{name}_logits"] = part.auxiliary_heads[i](enhanced[-1][i])
    found = {n: F.interpolate(m, size=(64, 64), mode="bilinear", align_corners=True) for n, m in maps.items()}
    found |= {f"fuse_feats.{i}": f for i, f in enumerate(fused)}
    found |= {"mdf3.share": parts[2].shared, "mdf3.difference": parts[2].differing, "mdf3.fused": parts[2].fused}
    expected = {k.removeprefix("output/"): v for k, v in golden.items() if k.startswith("output/")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-4, name


def authors_names(model: RefNet) -> dict[str, Tensor]:
    """A checkpoint with the authors' names, from a model of ours: `rename_authors` backwards, for two modalities."""
    theirs: dict[str, Tensor] = {}
    blocks = {"shared_block": "share_st_block.1", "difference_block": "diff_st_block.1"}
    parameters = {
        "norm1": "norm", "norm2": "norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2", "mix.enter": "op.in_proj",
        "mix.smooth": "op.conv2d", "mix.norm": "op.out_norm", "mix.leave": "op.out_proj",
        "mix.projection": "op.x_proj_weight", "mix.rank_weight": "op.dt_projs_weight",
        "mix.delta_bias": "op.dt_projs_bias", "mix.log_A": "op.A_logs", "mix.D": "op.Ds",
    }  # fmt: skip

    def block(name: str, value: Tensor) -> tuple[str, Tensor]:
        ours = next(p for p in parameters if name.startswith(p))
        four = ours in ("mix.projection", "mix.rank_weight", "mix.delta_bias")
        return name.replace(ours, parameters[ours], 1), value.unflatten(0, (4, -1)) if four else value

    for name, value in model.state_dict().items():
        kind, first, *rest = name.split(".")
        modality = {"0": "opt", "1": "sar"}.get(first, "")
        if kind == "encoders":
            theirs[f"{modality}_encoder.{'.'.join(rest)}"] = value
        elif kind == "auxiliary_heads":
            theirs[f"{modality}_seg_head.0.{rest[0]}"] = value
        elif kind == "head":
            theirs[f"seg_head.0.{first}"] = value
        else:
            scale, part, *rest = rest
            scale = str(int(scale) + 1)
            last = ".".join(rest)
            if part == "project":
                theirs[f"decoder.{['opt', 'sar'][int(rest[0])]}_proj_layer{scale}.weight"] = value
            elif part == "enhance":
                theirs[f"decoder.{['opt', 'sar'][int(rest[0])]}_fuse_layer_{scale}.{'.'.join(rest[1:])}"] = value
            elif part == "smooth":
                theirs[f"decoder.smooth_layer_{scale}1.{last}"] = value
            elif part == "smooth_enhanced":
                theirs[f"decoder.smooth_layer_{scale}{int(rest[0]) + 2}.{'.'.join(rest[1:])}"] = value
            elif part == "refine":
                inner, value = block(last, value)
                theirs[f"decoder.st_block_{scale}.1.{inner}"] = value
            elif rest[0] in blocks:
                inner, value = block(".".join(rest[1:]), value)
                theirs[f"decoder.fuse_layer{scale}.{blocks[rest[0]]}.{inner}"] = value
            else:
                names = {"join": "share_conv", "smooth": "smooth_layer"}
                theirs[f"decoder.fuse_layer{scale}.{names[rest[0]]}.{'.'.join(rest[1:])}"] = value
    return theirs


def test_loads_the_authors_checkpoints(tmp_path: Path) -> None:
    model = make()
    path = tmp_path / "ckpt.pth"
    state = {f"module.{k}": v for k, v in authors_names(model).items()}
    torch.save({"step": 2000, "opt_backbone": "resnet18", "sar_backbone": "resnet18", "state_dict": state}, path)
    loaded = from_authors(path, view=64)
    assert loaded.modalities == TWO
    x = images(model)
    with torch.no_grad():
        truth = model.eval()(x)
        assert torch.equal(loaded.eval()(x), truth)
        of_four = from_authors(path, view=64, core=32, classes=4)  # the first of five is their background
        torch.testing.assert_close(of_four.eval()(x), truth[:, 1:, 16:48, 16:48])
    with pytest.raises(ModelError, match=r"has 5 classes(.|\n)*3, with or without a background"):
        from_authors(path, classes=3)


def test_import_makes_a_bundle_that_maps(place: Path, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    """Of a checkpoint of the full layout; its first class is the background."""
    model = make({"a": Modality(3), "b": Modality(2)})
    torch.save({"state_dict": authors_names(model)}, tmp_path / "ckpt.pth")
    given = {"a": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}, "b": {"mean": [-1.0, 1.0], "std": [0.5, 0.7]}}
    recipe = {
        "scene": str(place / "scene.yaml"),
        "model": {"name": "refnet", "encoder": "resnet18", "view": 96},
        "pixel_maps": {name: {"kind": "given", **values} for name, values in given.items()},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ("import", "refnet", tmp_path / "ckpt.pth", tmp_path / "recipe.yaml")
    done = invoke(*words, "-o", tmp_path / "bundle")
    assert done.exit_code == 0, done.exception
    done = invoke("predict", tmp_path / "bundle", place / "scene.yaml", "-o", tmp_path / "map.tif")
    assert done.exit_code == 0, done.exception
    scene = open_scene(place / "scene.yaml")
    mapped = {}
    for name, values in given.items():
        mean, std = (torch.tensor(values[key])[:, None, None] for key in ("mean", "std"))
        image = torch.from_numpy(scene.read(name, scene.grid.window))
        mapped[name] = torch.nan_to_num((image - mean) / std)[None]
    with torch.no_grad():
        truth = model.eval()(mapped)[0, 1:].argmax(0).numpy()
    with rasterio.open(tmp_path / "map.tif") as file:
        codes = file.read(1)
    known = codes != 255
    assert known[6:].all()
    assert np.array_equal(scene.legend.to_classes(codes)[known], truth[known])
    assert len(set(codes[known])) > 1
    for change, found in (
        ("pixel_maps.b={kind: standardise}", "the pixel map of `b` is `standardise`"),
        ("modalities=[a]", "the recipe has the modalities a"),
        ("modalities=[b, a]", "takes 3 bands of `b` at zoom 1, 2 bands of `a`"),
        ("model={name: stacked}", "is a recipe of `stacked`"),
    ):
        refused = invoke(*words, change, "-o", tmp_path / "other")
        assert isinstance(refused.exception, LandfuseError), change
        assert found in str(refused.exception)
        assert not (tmp_path / "other").exists()


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        from_authors(tmp_path / "none.pth")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "foreign.pth")
    with pytest.raises(ModelError, match=r"opt_encoder\.conv1\.weight"):
        from_authors(tmp_path / "foreign.pth")
    state = authors_names(make())
    decoder = {name: value for name, value in state.items() if "encoder" not in name}
    torch.save({"state_dict": decoder}, tmp_path / "decoder.pth")
    with pytest.raises(ModelError, match=r"lacks `opt_encoder\.conv1\.weight`"):
        from_authors(tmp_path / "decoder.pth")
    torch.save({"state_dict": state | {"seg_head.0.weight": torch.tensor(1.0)}}, tmp_path / "scalar.pth")
    with pytest.raises(ModelError, match=r"`seg_head\.0\.weight` is \(\)"):
        from_authors(tmp_path / "scalar.pth")
    torch.save({"state_dict": state}, tmp_path / "deep.pth")
    with pytest.raises(ModelError, match="does not fit"):
        from_authors(tmp_path / "deep.pth", encoder="resnet34")
    torch.save({"state_dict": state | {"extra.weight": torch.zeros(1)}}, tmp_path / "extra.pth")
    with pytest.raises(ModelError, match=r"extra\.weight"):
        from_authors(tmp_path / "extra.pth", encoder="resnet18")


def test_blocks_of_all_modalities_at_once_are_those_of_each() -> None:
    torch.manual_seed(0)
    block, features = VSSBlock(8).eval(), [torch.randn(2, 8, 5, 7) for _ in range(3)]
    for found, alone in zip(_each(block, features, True), _each(block, features), strict=True):
        torch.testing.assert_close(found, alone)


def test_a_map_does_not_compute_what_only_training_uses() -> None:
    model = RefNet({"a": 3, "b": 2}, 4, encoder="resnet18", width=8, view=64).eval()

    def computed(*_: Any) -> None:
        raise AssertionError("enhanced features are for the auxiliary losses")

    for layers in (scale.enhance for scale in model.decoder.scales):
        for layer in layers:
            layer.register_forward_hook(computed)
    batch = {"a": torch.zeros(1, 3, 64, 64), "b": torch.zeros(1, 2, 64, 64)}
    assert model(batch).shape == (1, 4, 64, 64)
    with pytest.raises(AssertionError, match="auxiliary losses"):
        model.loss(batch, torch.zeros(1, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("off", ["", "share", "difference", "enhance", "concatenate", "sum"])
def test_every_parameter_learns_whatever_is_switched_off(off: str) -> None:
    fusion = {"fusion": off} if off in ("concatenate", "sum") else {off: False} if off else {}
    model = make(**fusion, auxiliary_weight=1.0, drop_path=0.0)
    target = torch.randint(0, 5, (2, 64, 64), dtype=torch.uint8)
    loss = model.loss(images(model), target)
    assert ("auxiliary" in loss) == (off != "enhance")
    loss["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [name for name, p in model.decoder.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_plain_fusions_are_a_sum_and_a_convolution() -> None:
    a, b = torch.randn(2, 1, 8, 5, 5).unbind()
    fuse = make(fusion="sum").decoder.scales[0].fuse
    assert torch.equal(fuse([a, b]).fused, a + b)
    assert not list(fuse.parameters())
    fuse = make(fusion="concatenate").eval().decoder.scales[0].fuse
    kernels = fuse.join[0].weight
    each = F.conv2d(a, kernels[:, :8], padding=1) + F.conv2d(b, kernels[:, 8:], padding=1)
    torch.testing.assert_close(fuse([a, b]).fused, F.relu(each / (1 + 1e-5) ** 0.5), rtol=1e-4, atol=1e-5)


def test_the_auxiliary_losses_have_their_weight() -> None:
    model = make(auxiliary_weight=0.25).eval()
    loss = model.loss(images(model), torch.randint(0, 5, (2, 64, 64), dtype=torch.uint8))
    torch.testing.assert_close(loss["loss"], loss["main"] + 0.25 * loss["auxiliary"])


def test_unlabelled_only_gives_zero() -> None:
    model = make()
    loss = model.loss(images(model), torch.full((2, 64, 64), UNLABELLED, dtype=torch.uint8))
    assert loss["loss"] == 0


def test_three_modalities_and_their_parts() -> None:
    model = make({"optical": Modality(4), "sar": Modality(2), "height": Modality(1)})
    target = torch.randint(0, 5, (2, 64, 64), dtype=torch.uint8)
    model.loss(images(model), target)["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    parts = model.parts(images(model))
    assert [p.fused.shape[-1] for p in parts] == [2, 4, 8, 16, 32]
    assert len(parts[0].differing_by_modality) == 3
    # each modality's difference is to the mean of the others, so equal features differ in nothing
    block = model.decoder.scales[0].fuse.eval()
    same = torch.randint(-9, 9, (1, 8, 4, 4)).float()  # whole numbers, so that the difference is exactly zero
    nothing = block.difference_block(torch.zeros_like(same))
    for differing in block([same, same, same]).differing_by_modality:
        torch.testing.assert_close(differing, nothing, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 51), (33, 100), (256, 16)])
def test_any_size(height: int, width: int) -> None:
    model = make().eval()
    with torch.no_grad():
        assert model(images(model, 1, height, width)).shape == (1, 5, height, width)


def test_a_core_smaller_than_the_view_is_the_middle_of_the_whole() -> None:
    whole, core = make().eval(), make(core=48).eval()
    core.load_state_dict(whole.state_dict())
    x = images(whole)
    with torch.no_grad():
        assert torch.equal(core(x), whole(x)[..., 8:56, 8:56])


def test_no_dependence_on_batch_mates() -> None:
    model = make().eval()
    x = images(model)
    with torch.no_grad():
        torch.testing.assert_close(model({k: v[:1] for k, v in x.items()}), model(x)[:1], rtol=1e-4, atol=1e-4)


def test_weights_from_a_file_are_adapted_to_the_bands(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    rgb = timm.create_model("resnet18", num_classes=7)
    safetensors.torch.save_file(rgb.state_dict(), tmp_path / "rgb.safetensors")
    torch.manual_seed(4)
    random = make().state_dict()
    torch.manual_seed(4)
    model = make(weights={"optical": tmp_path / "rgb.safetensors"})
    model.load_pretrained(missing_only=True)
    assert all(torch.equal(value, random[name]) for name, value in model.state_dict().items()), "a bundle has them"
    drawn = torch.get_rng_state()
    model.load_pretrained()
    assert torch.equal(torch.get_rng_state(), drawn), "what training draws does not depend on it"
    torch.testing.assert_close(model.encoders[0].layer4[1].conv2.weight, rgb.layer4[1].conv2.weight)
    first = model.encoders[0].conv1.weight
    assert first.shape[1] == 4
    torch.testing.assert_close(first[:, 0], rgb.conv1.weight[:, 0] * 3 / 4)  # timm repeats the bands, and scales
    assert not torch.equal(model.encoders[1].layer4[1].conv2.weight, rgb.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"encoder": "resnet5"}, ModelError, ["resnet5", "timm"]),
        ({"encoder": "convnext_atto"}, ModelError, ["convnext_atto", "stride"]),
        ({"encoder": {"optical": "resnet18"}}, ModelError, ["`sar`"]),
        ({"weights": {"sar": "nowhere.pth"}}, MissingFileError, ["nowhere.pth", "`sar`"]),
        ({"modalities": {"optical": Modality(3)}}, ModelError, ["optical", "two or more"]),
        ({"modalities": {"optical": Modality(3, zoom=2), "sar": Modality(1)}}, ModelError, ["zoom"]),
        ({"core": 63}, ModelError, ["core"]),
    ],
)
def test_mistakes(values: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        make(**values).load_pretrained()
    assert all(word in str(caught.value) for word in words), caught.value


def test_settings_that_leave_nothing_to_fuse() -> None:
    with pytest.raises(SettingsError, match="belong to `fusion: decompose`"):
        parse(RefNet.Settings, {"share": False, "fusion": "sum"}, "recipe.yaml")
    with pytest.raises(SettingsError, match="nothing would be left"):
        parse(RefNet.Settings, {"share": False, "difference": False}, "recipe.yaml")
