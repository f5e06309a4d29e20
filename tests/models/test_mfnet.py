"""MFNet: parity with the authors' network, sizes, zooms, encoders, memory, what a bundle stores, mistakes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rasterio
import safetensors.torch
import timm
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from landfuse.errors import MissingFileError, ModelError, SettingsError
from landfuse.kernels.attention import Padding, relative_attention
from landfuse.layers.unetformer import GlobalLocalAttention, mirrored
from landfuse.layers.vit_encoder import StackedEncoder
from landfuse.models.base import Modality
from landfuse.models.mfnet import MFNet, from_authors
from landfuse.rasters.geotiff_writer import write_raster
from landfuse.rasters.grid import Grid
from landfuse.settings import parse

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "window_size": 3, "global_attn_indexes": [1]}
TWO = {"optical": Modality(3), "dsm": Modality(1)}


def settings(**values: Any) -> Any:
    return MFNet.Settings(**({"encoder_options": TINY, "weights": "random", "view": 64} | values))


def images(model: MFNet, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, m.channels, model.view * m.zoom, model.view * m.zoom, generator=generator)
        for name, m in model.modalities.items()
    }


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".up", "rel_pos_h", "rel_pos_w", "pos_embed")):
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("finetune", ["adapter", "lora"])
def test_the_authors_checkpoint_gives_the_authors_outputs(shared: Path, tmp_path: Path, finetune: str) -> None:
    golden = safetensors.torch.load_file(shared / "golden" / f"mfnet_{finetune}.safetensors")
    state = {name.removeprefix("state/"): t for name, t in golden.items() if name.startswith("state/")}
    torch.save({f"module.{name}": t for name, t in state.items()}, tmp_path / "theirs.pth")
    model = from_authors(tmp_path / "theirs.pth").eval()
    batch = {"optical": golden["input/optical"], "dsm": golden["input/dsm"][:, None]}
    with torch.no_grad():
        (optical,), (dsm,) = model.features(batch)
        logits = model(batch)
    for got, name in ((optical, "encoder.optical"), (dsm, "encoder.dsm"), (logits, "logits")):
        truth = golden[f"output/{name}"]
        assert (got - truth).abs().max() < 1e-4, name
        # The logits are small, so a difference is also held against their own size.
        assert (got - truth).abs().max() < 1e-4 * truth.abs().max(), name
    name = next(name for name in state if name.endswith(("MLPy_Adapter.D_fc2.bias", "lin2.lora_By")))
    for broken in ({name: torch.tensor(1.0)}, {}):
        torch.save({key: value for key, value in state.items() if key != name} | broken, tmp_path / "broken.pth")
        with pytest.raises(ModelError, match="missing or of another shape"):
            from_authors(tmp_path / "broken.pth")


def test_import_makes_a_bundle_that_maps(shared: Path, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    """Images divided by 255 and heights from 0 to 1 in the tile, as in the authors' code."""
    golden = safetensors.torch.load_file(shared / "golden" / "mfnet_adapter.safetensors")
    state = {name.removeprefix("state/"): t for name, t in golden.items() if name.startswith("state/")}
    torch.save(state, tmp_path / "theirs.pth")
    optical, heights = golden["input/optical"][0] * 255, golden["input/dsm"][0, None] * 40 + 300
    grid = Grid(256, 256, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), "EPSG:32632")
    for name, image in (("optical", optical), ("dsm", heights)):
        write_raster(tmp_path / f"{name}.tif", grid, image.numpy())
    scene = {
        "name": "tile",
        "modalities": {"optical": {"path": "optical.tif"}, "dsm": {"path": "dsm.tif", "stretch": True}},
        "legend": [{"name": name} for name in "abcdef"],
    }
    recipe = {
        "scene": "scene.yaml",
        "model": {"name": "mfnet"},
        "pixel_maps": {
            "optical": {"kind": "given", "mean": [0, 0, 0], "std": [255, 255, 255]},
            "dsm": {"kind": "none"},
        },
    }
    for name, text in (("scene", scene), ("recipe", recipe)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    words = ("import", "mfnet", tmp_path / "theirs.pth", tmp_path / "recipe.yaml", "-o", tmp_path / "bundle")
    assert invoke(*words).exit_code == 0
    done = invoke("predict", tmp_path / "bundle", tmp_path / "scene.yaml", "-o", tmp_path / "map.tif")
    assert done.exit_code == 0, done.exception
    low, high = heights.double().min(), heights.double().max()
    batch = {"optical": optical[None] / 255, "dsm": ((heights.double() - low) / (high - low)).float()[None]}
    with torch.no_grad():
        logits = from_authors(tmp_path / "theirs.pth").eval()(batch)[0]
    best = logits.topk(2, dim=0).values
    with rasterio.open(tmp_path / "map.tif") as file:
        same = file.read(1) == logits.argmax(0).numpy() + 1
    assert same[(best[0] - best[1] > 1e-5).numpy()].all()
    assert same.mean() > 0.99
    refused = invoke(*words, "modalities=[dsm, optical]", "--overwrite")
    assert isinstance(refused.exception, ModelError)
    assert "the first with three channels" in str(refused.exception)


def test_relative_attention_is_the_sum_that_sam_writes_out() -> None:
    torch.manual_seed(0)
    H, W, d = 3, 4, 5
    q, k, v = (torch.randn(2, 2, H, W, d, dtype=torch.float64, requires_grad=True) for _ in range(3))
    rows, columns = (torch.randn(2 * s - 1, d, dtype=torch.float64, requires_grad=True) for s in (H, W))
    logits = torch.zeros(2, 2, H * W, H * W, dtype=torch.float64)
    for i in range(H * W):
        for j in range(H * W):
            (hi, wi), (hj, wj) = divmod(i, W), divmod(j, W)
            table = k[:, :, hj, wj] * d**-0.5 + rows[hi - hj + H - 1] + columns[wi - wj + W - 1]
            logits[:, :, i, j] = (q[:, :, hi, wi] * table).sum(-1)
    truth = logits.softmax(-1) @ v.flatten(2, 3)
    got = relative_attention(q, k, v, rows, columns)
    torch.testing.assert_close(got, truth)
    weight = torch.randn_like(truth)
    inputs = (q, k, v, rows, columns)
    for ours, theirs in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((truth * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("H", "W"), [(3, 5), (5, 2), (2, 1), (5, 5)])
def test_padding_of_a_window_is_one_more_key(H: int, W: int) -> None:
    """Against the window written out with all its padded tokens, with gradients."""
    torch.manual_seed(0)
    side, d = 5, 4
    q, k, v = (torch.randn(2, 2, H, W, d, dtype=torch.float64, requires_grad=True) for _ in range(3))
    k0, v0 = (torch.randn(2, 2, 1, d, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rows, columns = (torch.randn(2 * side - 1, d, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def whole(x: Tensor, filling: Tensor) -> Tensor:
        filled = filling[:, :, :, None].expand(-1, -1, side, side, -1).clone()
        filled[:, :, :H, :W] = x
        return filled

    everywhere = relative_attention(whole(q, torch.zeros_like(k0)), whole(k, k0), whole(v, v0), rows, columns)
    truth = everywhere.view(2, 2, side, side, d)[:, :, :H, :W].reshape(2, 2, H * W, d)
    padding = Padding(k0, v0, side) if min(H, W) < side else None
    got = relative_attention(q, k, v, rows, columns, padding)
    torch.testing.assert_close(got, truth)
    weight = torch.randn_like(truth)
    inputs = (q, k, v, rows, columns) + ((k0, v0) if padding else ())
    for ours, theirs in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((truth * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("H", "W"), [(4, 7), (3, 8), (2, 2)])
def test_windows_that_are_filled_up_are_those_that_the_edge_cuts(H: int, W: int) -> None:
    """As a GPU computes them, in one call; with gradients."""
    encoder = randomised(StackedEncoder("samvit_base_patch16", 64, TINY))
    attention = encoder.vit.blocks[0].attn.double()
    x = torch.randn(2, H, W, 32, dtype=torch.float64, requires_grad=True)
    qkv, padding = attention.qkv(x), attention.qkv(x.new_zeros(2, 1, 1, 32))
    cut, filled = attention._attend(qkv, padding), attention._filled_up(qkv, padding)
    torch.testing.assert_close(filled, cut)
    inputs = (x, *attention.parameters())
    weight = torch.randn_like(cut)
    for ours, theirs in zip(
        *(torch.autograd.grad((y * weight).sum(), inputs, allow_unused=True, retain_graph=True) for y in (filled, cut)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_stacked_encoder_is_timms_sam_on_each_modality() -> None:
    """Windows of 3 on a grid of 4: most windows hold padding, which is projected too in timm's model."""
    encoder = randomised(StackedEncoder("samvit_base_patch16", 64, TINY))
    plain = timm.create_model(
        "samvit_base_patch16", num_classes=0, img_size=64, norm_layer=partial(nn.LayerNorm, eps=1e-6), **TINY
    )
    plain.load_state_dict(encoder.vit.state_dict())
    optical, dsm = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (first,), (second,) = encoder([optical, dsm])
        torch.testing.assert_close(first, plain.forward_features(optical), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(second, plain.forward_features(dsm), atol=2e-5, rtol=1e-4)


def test_the_norms_of_sams_blocks_are_those_it_was_trained_with() -> None:
    vit = StackedEncoder("samvit_base_patch16", 64, TINY).vit
    assert {norm.eps for block in vit.blocks for norm in (block.norm1, block.norm2)} == {1e-6}


def test_mirroring_goes_on_where_reflection_padding_stops() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    torch.testing.assert_close(mirrored(x, 5, 7), F.pad(x, (0, 3, 0, 2), mode="reflect"))
    assert mirrored(x, 3, 11)[0, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2]
    assert mirrored(torch.full((1, 1, 1, 1), 7.0), 2, 3).tolist() == [[[[7.0] * 3] * 2]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 9), (8, 8), (13, 2)])
def test_global_local_attention_takes_any_size(height: int, width: int) -> None:
    layer = GlobalLocalAttention(16, 8, 8).eval()
    assert layer(torch.randn(2, 16, height, width)).shape == (2, 16, height, width)


def test_global_local_attention_is_windowed_attention_pooled_in_strips() -> None:
    """Window by window and cell by cell, on a map that is no multiple of the window."""
    torch.manual_seed(0)
    H, W, D, heads, w = 7, 6, 8, 2, 4
    layer = GlobalLocalAttention(D, heads, w).double().eval()
    x = torch.randn(1, D, H, W, dtype=torch.float64)
    with torch.no_grad():
        got = layer(x)
        qkv = layer.qkv(F.pad(x, (0, 2, 0, 1), mode="reflect"))[0].view(3, heads, D // heads, 8, 8)
        attended = torch.zeros(1, D, 8, 8, dtype=torch.float64)
        for top in (0, w):
            for left in (0, w):
                cells = [(top + i, left + j) for i in range(w) for j in range(w)]
                for h in range(heads):
                    for i, j in cells:
                        logits = []
                        for r, c in cells:
                            place = (i - r + w - 1) * (2 * w - 1) + (j - c + w - 1)
                            dot = (qkv[0, h, :, i, j] * qkv[1, h, :, r, c]).sum() * (D // heads) ** -0.5
                            logits.append(dot + layer.bias[place, h])
                        weights = torch.stack(logits).softmax(0)
                        values = qkv[2, h, :, top : top + w, left : left + w].flatten(1)
                        attended[0, h * (D // heads) : (h + 1) * (D // heads), i, j] = values @ weights
        attended = attended[:, :, :H, :W]
        down = F.pad(F.pad(attended, (0, 0, 0, 1), mode="reflect"), (0, 0, 1, 1))
        across = F.pad(F.pad(attended, (0, 1, 0, 0), mode="reflect"), (1, 1, 0, 0))
        pooled = down.unfold(2, w, 1).mean(-1) + across.unfold(3, w, 1).mean(-1)
        truth = layer.proj(F.pad(pooled + layer.local1(x) + layer.local3(x), (0, 1, 0, 1), mode="reflect"))
    torch.testing.assert_close(got, truth)


@pytest.mark.parametrize(("view", "core", "classes"), [(16, None, 2), (33, 21, 3), (50, 50, 11), (96, 64, 6)])
def test_any_size_and_any_number_of_classes(view: int, core: int | None, classes: int) -> None:
    model = MFNet(TWO, classes, settings(view=view, core=core)).eval()
    side = core or view
    with torch.no_grad():
        assert model(images(model)).shape == (2, classes, side, side)


def test_the_core_is_the_middle_of_the_view() -> None:
    torch.manual_seed(0)
    whole = MFNet(TWO, 3, settings(view=32)).eval()
    cut = MFNet(TWO, 3, settings(view=32, core=20)).eval()
    cut.load_state_dict(whole.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(cut(images(cut)), whole(images(whole))[:, :, 6:26, 6:26])


def test_a_finer_modality_is_seen_at_its_own_size_and_scored_on_the_scenes_grid() -> None:
    torch.manual_seed(0)
    two = {"rgb": Modality(3, zoom=10), "height": Modality(1)}
    model = MFNet(two, 4, settings(view=20)).eval()
    batch = images(model)
    seen: list[Tensor] = []
    model.encoder.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    raw: list[Tensor] = []
    model.decoder.register_forward_hook(lambda *hooked: raw.append(hooked[2]))
    with torch.no_grad():
        logits = model(batch)
    assert logits.shape == (2, 4, 20, 20)
    assert seen[0].shape == (4, 3, 224, 224)  # both modalities in one pass, 200 px continued to a multiple of 32
    torch.testing.assert_close(seen[0][:2, :, :200, :200], batch["rgb"])
    coarse = F.interpolate(batch["height"], scale_factor=10.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[0][2:, :1, :200, :200], coarse)
    fine = F.interpolate(raw[0], size=(224, 224), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits[0, 1, 3, 5], fine[0, 1, 30:40, 50:60].mean())


def test_encoder_zoom_averages_a_modality_that_is_finer() -> None:
    model = MFNet({"rgb": Modality(3, zoom=4), "height": Modality(1)}, 4, settings(view=32, encoder_zoom=2)).eval()
    batch = images(model)
    seen: list[Tensor] = []
    model.encoder.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        assert model(batch).shape == (2, 4, 32, 32)
    torch.testing.assert_close(seen[0][0, 2, 5, 7], batch["rgb"][0, 2, 10:12, 14:16].mean())


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 30])
def test_any_number_of_channels(channels: int) -> None:
    model = MFNet({"a": Modality(channels), "b": Modality(3)}, 3, settings())
    x = torch.randn(2, channels, 6, 6)
    with torch.no_grad():
        three = model.stems[0](x)
    if channels == 1:
        truth = x.repeat(1, 3, 1, 1)
    elif channels == 2:
        truth = torch.cat((x, x.mean(1, keepdim=True)), dim=1)
    else:
        truth = x[:, :3]
    torch.testing.assert_close(three, truth)
    trained = [p for p in model.stems.parameters() if p.requires_grad]
    assert len(trained) == (0 if channels in (1, 3) else 2)
    model(images(model)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


SMALL_ENCODERS = {
    "vit_tiny_patch16_224": {"depth": 2},
    "vit_small_patch16_dinov3_qkvb": {"depth": 2},
    "vit_small_plus_patch16_dinov3": {"depth": 1},
    "sam2_hiera_tiny": {"embed_dim": 32, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
    "vit_small_patch14_dinov2": {"depth": 1},
}


@pytest.mark.parametrize("finetune", ["both", "full"])
@pytest.mark.parametrize("encoder", SMALL_ENCODERS)
def test_other_encoders_train(encoder: str, finetune: str) -> None:
    config = settings(encoder=encoder, encoder_options=SMALL_ENCODERS[encoder], finetune=finetune, view=40)
    model = MFNet({"a": Modality(3), "b": Modality(1), "c": Modality(4)}, 3, config)
    randomised(model)
    target = torch.randint(3, (2, 40, 40)).to(torch.uint8)
    model.loss(images(model), target)["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("finetune", ["adapter", "lora", "both", "none", "full"])
def test_any_number_of_modalities(modalities: int, finetune: str) -> None:
    torch.manual_seed(0)
    names = {f"m{m}": Modality(3) for m in range(modalities)}
    model = randomised(MFNet(names, 3, settings(finetune=finetune))).eval()
    batch = images(model, 3)
    with torch.no_grad():
        together = model(batch)
        alone = model({name: image[1:2] for name, image in batch.items()})
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_the_modalities_influence_each_other_in_the_encoder() -> None:
    torch.manual_seed(0)
    model = MFNet(TWO, 3, settings(finetune="adapter")).eval()
    batch = images(model)
    with torch.no_grad():
        before = model.features(batch)[0][0]
        after = model.features(batch | {"dsm": batch["dsm"] + 1})[0][0]
    assert (before - after).abs().max() > 1e-4


def saved(model: MFNet, batch: dict[str, Tensor]) -> list[Tensor]:
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *batch.values())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.features(batch)
    return list(kept.values())


def test_what_the_encoder_keeps_for_the_backward_pass() -> None:
    options = TINY | {"depth": 8}
    sizes = {}
    for name, values in {
        "none": {"finetune": "none"},
        "last": {"first_block": 7},
        "all": {},
        "checkpointed": {"checkpointing": True},
    }.items():
        torch.manual_seed(0)
        model = MFNet(TWO, 3, settings(view=128, encoder_options=options, **values))
        kept = saved(model, images(model))
        sizes[name] = sum(t.untyped_storage().nbytes() for t in kept)
        # 8 x 8 tokens, 2 heads, 4 images: not one attention matrix of the global block, nor a window's, and no q, k, v
        # per head: attention is computed again from the projection of the image's own tokens.
        assert not [t for t in kept if t.ndim == 4 and t.shape[1] == 2]
        assert not [t for t in kept if t.shape[-2:] in ((64, 64), (9, 9))]
    assert sizes["none"] == 0
    assert sizes["last"] < 0.4 * sizes["all"]
    assert sizes["checkpointed"] < 0.4 * sizes["all"]


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = MFNet(TWO, 3, settings(finetune="both", checkpointing=checkpointing, dropout=0.0))
        randomised(model)
        model.loss(images(model), torch.zeros(2, 64, 64, dtype=torch.uint8))["loss"].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_bfloat16_gives_nearly_the_same_scores() -> None:
    torch.manual_seed(0)
    model = randomised(MFNet(TWO, 3, settings(finetune="both"))).eval()
    batch = images(model)
    with torch.no_grad():
        full = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(batch)
    assert (full - half.float()).abs().max() < 0.05 * full.abs().max()


def encoder_file(folder: Path) -> Path:
    torch.manual_seed(3)
    encoder = StackedEncoder("samvit_base_patch16", 128, TINY)
    randomised(encoder)
    safetensors.torch.save_file(encoder.vit.state_dict(), folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


@pytest.mark.parametrize("finetune", ["adapter", "lora", "none"])
def test_only_what_was_trained_is_stored(tmp_path: Path, finetune: str) -> None:
    path = encoder_file(tmp_path)
    config = settings(weights=str(path), finetune=finetune)
    model = MFNet({"a": 4, "b": 1}, 3, config)
    assert model.frozen_reference() is None, "its weights have not been read"
    model.load_pretrained()
    randomised(model)
    model.loss(images(model), torch.zeros(2, 64, 64, dtype=torch.uint8))  # moves the batch norms' statistics
    model.eval()
    # `randomised` also moved the frozen positions, which no bundle stores: put the file's back.
    again = MFNet(model.modalities, 3, config)
    again.load_pretrained(missing_only=True)
    model.encoder.vit.load_state_dict(
        {
            n: t
            for n, t in again.encoder.vit.state_dict().items()
            if n.endswith(("rel_pos_h", "rel_pos_w", "pos_embed"))
        },
        strict=False,
    )
    stored = model.trained_state()
    reference = model.frozen_reference()
    assert reference is not None
    assert reference["address"] == str(path)
    assert len(reference["sha256"]) == 64
    in_file = again.encoder.vit.state_dict().keys() - {
        n for n, p in again.encoder.vit.named_parameters() if p.requires_grad
    }
    assert in_file
    assert not [n for n in stored if n.removeprefix("encoder.vit.") in in_file]
    again.load_trained_state(stored)
    batch = images(model)
    with torch.no_grad():
        assert torch.equal(again.eval()(batch), model(batch))
    other = MFNet(model.modalities, 4, config)
    other.load_pretrained()
    with pytest.raises(ModelError, match=r"decoder\.head\.2\.weight is \(3, 64, 1, 1\) instead of \(4, 64, 1, 1\)"):
        other.load_trained_state(stored)
    path.unlink()
    with pytest.raises(MissingFileError, match="with weights of the encoder `samvit_base_patch16`"):
        MFNet(model.modalities, 3, config).load_pretrained()


@pytest.mark.parametrize("values", [{"finetune": "full"}, {"weights": "random"}])
def test_an_encoder_that_is_in_no_file_is_stored(tmp_path: Path, values: dict[str, str]) -> None:
    model = MFNet(TWO, 3, settings(**({"weights": str(encoder_file(tmp_path))} | values)))
    before = model.encoder.vit.patch_embed.proj.weight.clone()
    model.load_pretrained(missing_only=True)
    assert torch.equal(model.encoder.vit.patch_embed.proj.weight, before), "a bundle has it"
    model.load_pretrained()
    assert torch.equal(model.encoder.vit.patch_embed.proj.weight, before) == ("weights" in values)
    assert model.frozen_reference() is None
    assert model.trained_state().keys() == model.state_dict().keys()


@pytest.mark.parametrize("modalities", [1, 2])
def test_a_merged_model_scores_the_same_and_can_be_rebuilt(tmp_path: Path, modalities: int) -> None:
    names = {f"m{m}": Modality(3) for m in range(modalities)}
    model = MFNet(names, 3, settings(finetune="lora", weights=str(encoder_file(tmp_path)))).eval()
    model.load_pretrained()
    randomised(model)
    batch = images(model)
    with torch.no_grad():
        before = model(batch)
        folded, kept = model.merge()
        merged = model(batch)
    torch.testing.assert_close(merged, before, atol=1e-5, rtol=1e-4)
    assert len(folded) == (6 if modalities == 1 else 2)
    assert len(kept) == (0 if modalities == 1 else 4)
    assert model.frozen_reference() is None
    again = MFNet(names, 3, model.config).eval()
    again.load_trained_state(model.trained_state())
    with torch.no_grad():
        assert torch.equal(again(batch), merged)


def test_mistakes_are_reported_in_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"images are 8 px wide, and a patch of `samvit_base_patch16` is 16 px"):
        MFNet(TWO, 3, settings(view=8))
    with pytest.raises(ModelError, match="rank of LoRA is 40"):
        MFNet(TWO, 3, settings(finetune="lora", rank=40))
    with pytest.raises(ModelError, match=r"view of 512 px at zoom 10 is 5120 px wide(.|\n)*`view` to 409"):
        MFNet({"rgb": Modality(3, zoom=10)}, 3, settings(view=512))
    with pytest.raises(ModelError, match="`rgb` has 3 channels at zoom 0"):
        MFNet({"rgb": Modality(3, zoom=0)}, 3, settings())
    with pytest.raises(ModelError, match="no modality"):
        MFNet({}, 3, settings())
    with pytest.raises(ModelError, match=r"no encoder `samvit_bas_patch16`(.|\n)*did you mean `samvit_base_patch16`"):
        MFNet(TWO, 3, settings(encoder="samvit_bas_patch16"))
    with pytest.raises(ModelError, match="`resnet18` is no Vision Transformer"):
        MFNet(TWO, 3, settings(encoder="resnet18", encoder_options={}))
    with pytest.raises(ModelError, match="cannot build `samvit_base_patch16`"):
        MFNet(TWO, 3, settings(encoder_options={"deepness": 3}))
    with pytest.raises(SettingsError, match="no such fine-tuning; known: adapter, lora, both, none, full"):
        parse(MFNet.Settings, {"finetune": "prompt"}, "recipe.yaml")
    model = MFNet(TWO, 3, settings())
    with pytest.raises(ModelError, match="`dsm` came as only optical"):
        model({"optical": torch.zeros(1, 3, 64, 64)})
    with pytest.raises(ModelError, match=r"`dsm` came as \(1, 1, 64, 64\)(.|\n)*with \(1, 32, 32\)"):
        model({"optical": torch.zeros(1, 3, 32, 32), "dsm": torch.zeros(1, 1, 64, 64)})
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 4, 4, 8)}, tmp_path / "sam.pth")
    with pytest.raises(ModelError, match="no checkpoint of the authors' MFNet"):
        from_authors(tmp_path / "sam.pth")
    with pytest.raises(ModelError, match="with 3 modalities"):
        from_authors(tmp_path / "sam.pth", {name: Modality(3) for name in "abc"})


@pytest.mark.parametrize("finetune", ["adapter", "lora", "both"])
@pytest.mark.parametrize("exchange", [True, False])
def test_without_exchange_a_modality_keeps_to_itself(finetune: str, exchange: bool) -> None:
    model = randomised(MFNet(TWO, 3, settings(finetune=finetune, exchange=exchange))).eval()
    x = images(model)
    with torch.no_grad():
        (before,), _ = model.features(x)
        (after,), _ = model.features(x | {"dsm": x["dsm"] + 1})
    assert torch.equal(before, after) == (not exchange)
    assert any(name.endswith("exchange.own") for name, _ in model.named_parameters()) == exchange


@pytest.mark.parametrize("encoder", ["plain", "sam2"])
def test_without_deep_fusion_the_decoder_enlarges_a_sum(encoder: str) -> None:
    four = {"encoder": "sam2_hiera_tiny", "encoder_options": {}, "finetune": "none"}
    model = MFNet(TWO, 3, settings(deep_fusion=False, **(four if encoder == "sam2" else {}))).train()
    x = images(model, 1)
    maps = model.features(x)
    fused = model.fusion(maps)
    assert len(fused) == (4 if encoder == "sam2" else 1)
    assert all(torch.equal(f, a + b) for f, a, b in zip(fused, *maps, strict=True))
    logits = model(x)
    assert logits.shape == (1, 3, 64, 64)
    logits.square().sum().backward()
    assert [name for name, p in model.decoder.named_parameters() if p.grad is None] == []
    assert not list(model.fusion.parameters())


def test_heat_maps_are_grad_cam_of_each_modality() -> None:
    model = randomised(MFNet(TWO, 3, settings(core=32))).eval()
    x = images(model)
    wanted = torch.zeros(2, 3, 32, 32)
    wanted[:, 1, 4:9, 20:30] = 1
    heat = model.heat_maps(x, wanted)
    assert sum(float(each.amax(dim=(1, 2)).sum()) for each in heat) > 1
    maps = [[x.detach().double().requires_grad_() for x in each] for each in model.features(x)]
    model.double()
    decoded = F.interpolate(model.decoder(model.fusion(maps)), size=(64, 64), mode="bilinear", align_corners=False)
    for image in range(2):
        score = decoded[image, 1, 16 + 4 : 16 + 9, 16 + 20 : 16 + 30].sum()
        for (features,), got in zip(maps, heat, strict=True):
            (slope,) = torch.autograd.grad(score, features, retain_graph=True)
            truth = sum(slope[image, c].mean() * features[image, c] for c in range(256)).clamp(min=0)
            assert got.shape == (2, 64, 64)
            truth = F.interpolate(
                truth[None, None] / truth.max().clamp(min=1e-30), size=(64, 64), mode="bilinear", align_corners=False
            )
            torch.testing.assert_close(got[image].double(), truth[0, 0].detach(), rtol=1e-3, atol=1e-3)
