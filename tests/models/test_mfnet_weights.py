"""Weights of MFNet's encoder: published layouts, resizing, fetching, and files that are wrong."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from landfuse import download
from landfuse.errors import MissingFileError, ModelError
from landfuse.layers.checkpoints import read_tensors
from landfuse.layers.vit_encoder import StackedEncoder
from landfuse.models import mfnet_weights
from landfuse.models.base import Modality
from landfuse.models.mfnet import MFNet

WIDTH, HEADS, WINDOW, GRID = 16, 2, 3, 8
TINY = {"embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "window_size": WINDOW, "global_attn_indexes": [1]}
NAME = "samvit_base_patch16"


def official() -> dict[str, Tensor]:
    """A small encoder by the names and shapes of Segment Anything's own checkpoints, 128 px wide."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, GRID, GRID, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
        "neck.0.weight": (256, WIDTH, 1, 1),
        "neck.1.weight": (256,),
        "neck.1.bias": (256,),
        "neck.2.weight": (256, 256, 3, 3),
        "neck.3.weight": (256,),
        "neck.3.bias": (256,),
    }
    for block, length in ((0, 2 * WINDOW - 1), (1, 2 * GRID - 1)):
        shapes |= {
            f"blocks.{block}.norm1.weight": (WIDTH,),
            f"blocks.{block}.norm1.bias": (WIDTH,),
            f"blocks.{block}.attn.rel_pos_h": (length, WIDTH // HEADS),
            f"blocks.{block}.attn.rel_pos_w": (length, WIDTH // HEADS),
            f"blocks.{block}.attn.qkv.weight": (3 * WIDTH, WIDTH),
            f"blocks.{block}.attn.qkv.bias": (3 * WIDTH,),
            f"blocks.{block}.attn.proj.weight": (WIDTH, WIDTH),
            f"blocks.{block}.attn.proj.bias": (WIDTH,),
            f"blocks.{block}.norm2.weight": (WIDTH,),
            f"blocks.{block}.norm2.bias": (WIDTH,),
            f"blocks.{block}.mlp.lin1.weight": (4 * WIDTH, WIDTH),
            f"blocks.{block}.mlp.lin1.bias": (4 * WIDTH,),
            f"blocks.{block}.mlp.lin2.weight": (WIDTH, 4 * WIDTH),
            f"blocks.{block}.mlp.lin2.bias": (WIDTH,),
        }
    torch.manual_seed(0)
    state = {f"image_encoder.{name}": torch.randn(shape) for name, shape in shapes.items()}
    return state | {"prompt_encoder.not_a_point_embed.weight": torch.randn(1, 256), "mask_decoder.x": torch.randn(2)}


HUGGING_FACE = {
    "patch_embed.proj.": "patch_embed.projection.",
    "neck.0.": "neck.conv1.",
    "neck.1.": "neck.layer_norm1.",
    "neck.2.": "neck.conv2.",
    "neck.3.": "neck.layer_norm2.",
    "blocks.": "layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
}


def in_layout(layout: str) -> dict[str, Tensor]:
    state = official()
    if layout == "official":
        return state
    inner = {n.removeprefix("image_encoder."): t for n, t in state.items() if n.startswith("image_encoder.")}
    if layout == "timm":
        return {n.replace("mlp.lin", "mlp.fc"): t for n, t in inner.items()}
    renamed = {}
    for name, tensor in inner.items():
        for ours, theirs in HUGGING_FACE.items():
            name = name.replace(ours, theirs)
        renamed[f"vision_encoder.{name}"] = tensor
    return renamed | {"shared_image_embedding.positional_embedding": torch.zeros(2, 128)}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("layout", ["official", "timm", "hugging face"])
def test_published_layouts_are_read(tmp_path: Path, layout: str, suffix: str) -> None:
    path = tmp_path / f"encoder.{suffix}"
    if suffix == "pth":
        torch.save(in_layout(layout), path)
    else:
        safetensors.torch.save_file(in_layout(layout), path)
    encoder = StackedEncoder(NAME, 128, TINY)
    mfnet_weights.fit(encoder.vit, mfnet_weights.encoder_state(read_tensors(path)), str(path))
    truth = official()
    for block in range(2):
        for ours, theirs in (("fc1", "lin1"), ("fc2", "lin2")):
            weight = encoder.vit.blocks[block].mlp.get_submodule(ours).weight
            assert torch.equal(weight, truth[f"image_encoder.blocks.{block}.mlp.{theirs}.weight"])
        attention = encoder.vit.blocks[block].attn
        assert torch.equal(attention.qkv.weight, truth[f"image_encoder.blocks.{block}.attn.qkv.weight"])
        assert torch.equal(attention.rel_pos_w, truth[f"image_encoder.blocks.{block}.attn.rel_pos_w"])
    assert torch.equal(encoder.vit.pos_embed, truth["image_encoder.pos_embed"])
    assert torch.equal(encoder.vit.neck[3].bias, truth["image_encoder.neck.3.bias"])


def test_segment_anything_2s_layout_is_read(tmp_path: Path) -> None:
    options = {"embed_dim": 32, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)}
    encoder = StackedEncoder("sam2_hiera_tiny", 64, options)
    theirs = {}
    for name, tensor in encoder.vit.state_dict().items():
        name = name.replace(".mlp.fc1.", ".mlp.layers.0.").replace(".mlp.fc2.", ".mlp.layers.1.")
        theirs[f"image_encoder.trunk.{name}"] = tensor + 1
    torch.save({"model": theirs | {"memory_encoder.x": torch.zeros(1)}}, tmp_path / "sam2.pt")
    config = MFNet.Settings(
        encoder="sam2_hiera_tiny", encoder_options=options, weights=str(tmp_path / "sam2.pt"), view=64, finetune="none"
    )
    model = MFNet({"a": Modality(3)}, 3, config)
    model.load_pretrained()
    for name, tensor in encoder.vit.state_dict().items():
        assert torch.equal(model.encoder.vit.state_dict()[name], tensor + 1), name


def test_positions_are_resized_once_to_the_images(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "sam.pth")
    config = MFNet.Settings(encoder_options=TINY, weights=str(tmp_path / "sam.pth"), view=64, finetune="none")
    model = MFNet({"a": Modality(3)}, 3, config)
    model.load_pretrained()
    vit = model.encoder.vit
    assert vit.pos_embed.shape == (1, 4, 4, WIDTH)
    before = official()["image_encoder.blocks.1.attn.rel_pos_h"].numpy()
    # Linear, cell centres on cell centres: place i of 7 lies at (i + 0.5) 15 / 7 - 0.5 of 15.
    places = (np.arange(7) + 0.5) * 15 / 7 - 0.5
    truth = np.stack([np.interp(places, np.arange(15), column) for column in before.T], axis=1)
    np.testing.assert_allclose(vit.blocks[1].attn.rel_pos_h.detach().numpy(), truth, atol=1e-5)
    assert vit.blocks[0].attn.rel_pos_h.shape == (2 * WINDOW - 1, WIDTH // HEADS)


def test_positions_are_resized_bicubically_without_antialiasing() -> None:
    """At half the size each new cell lies between four old ones, whose weights are Keys' at 0.5 and 1.5 (a = -0.75)."""
    grid = torch.randn(1, 8, 8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float()
    got = mfnet_weights.resized("pos_embed", grid, torch.Size((1, 4, 4, 3)), 0)
    a = -0.75

    def weight(distance: float) -> float:
        if distance <= 1:
            return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a

    taps = np.array([weight(1.5), weight(0.5), weight(0.5), weight(1.5)])
    matrix = np.zeros((4, 8))
    for new in range(4):
        for tap, old in zip(taps, range(2 * new - 1, 2 * new + 3), strict=True):
            matrix[new, min(max(old, 0), 7)] += tap
    truth = np.einsum("ih,jw,hwd->ijd", matrix, matrix, grid[0].numpy())
    np.testing.assert_allclose(got[0].numpy(), truth, atol=1e-5)


def test_class_tokens_keep_their_positions() -> None:
    positions = torch.randn(1, 1 + 16, 4)
    got = mfnet_weights.resized("pos_embed", positions, torch.Size((1, 1 + 4, 4)), 1)
    assert got.shape == (1, 5, 4)
    assert torch.equal(got[:, 0], positions[:, 0])


def fitted(path: Path, encoder: str = NAME, **options: object) -> None:
    MFNet({"a": 3}, 3, encoder=encoder, encoder_options=options, weights=str(path), view=64).load_pretrained()


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "sam.pth")
    with pytest.raises(ModelError, match=r"another architecture \(2 blocks, 16 wide at the patches\)"):
        fitted(tmp_path / "sam.pth", **(TINY | {"embed_dim": 32}))
    with pytest.raises(ModelError, match=r"blocks.2.norm1.weight is missing"):
        fitted(tmp_path / "sam.pth", **(TINY | {"depth": 3}))
    with pytest.raises(ModelError, match=r"blocks.1.norm1.weight is more than the encoder has"):
        fitted(tmp_path / "sam.pth", **(TINY | {"depth": 1, "global_attn_indexes": []}))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ModelError, match="no Vision Transformer"):
        fitted(tmp_path / "resnet.pth", **TINY)


def test_the_right_encoder_is_named_for_a_published_checkpoint(tmp_path: Path) -> None:
    state = {"image_encoder.pos_embed": torch.zeros(1, 2, 2, 1024)}
    state["image_encoder.patch_embed.proj.weight"] = torch.zeros(1024, 1, 1, 1)
    state |= {f"image_encoder.blocks.{block}.norm1.weight": torch.zeros(1024) for block in range(24)}
    torch.save(state, tmp_path / "sam_vit_l.pth")
    with pytest.raises(ModelError, match="set `encoder: samvit_large_patch16`"):
        fitted(tmp_path / "sam_vit_l.pth", **TINY)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_that_are_no_checkpoints(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"encoder.{suffix}"
    if suffix == "pth":
        torch.save(official(), path)
    else:
        safetensors.torch.save_file(official(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"cannot be read(.|\n)*may be truncated"):
        read_tensors(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be read"):
        read_tensors(path)
    path.unlink()
    with pytest.raises(MissingFileError, match="there is no file"):
        read_tensors(path)


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(ModelError, match="cannot be read"):
        read_tensors(tmp_path / "whole.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds list, not named tensors"):
        read_tensors(tmp_path / "list.pth")


CONTENT = b"weights of an encoder"
SHA = hashlib.sha256(CONTENT).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers like the hub: states the checksum and redirects, then gives the file."""

    def do_HEAD(self) -> None:
        self.send_response(302)
        self.send_header("X-Linked-Etag", f'"{SHA}"')
        self.send_header("Location", "/store")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if "bad" not in self.path else CONTENT[::-1])

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LANDFUSE_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_published_weights_are_fetched_once_and_checked(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mfnet_weights.PUBLISHED, NAME, (f"{hub}/sam_vit_b_01ec64.pth", SHA))
    reference = mfnet_weights.by_name(NAME)
    assert reference == (NAME, f"{hub}/sam_vit_b_01ec64.pth", SHA, tmp_path / "cache" / "sam_vit_b_01ec64.pth")
    assert reference.path.read_bytes() == CONTENT
    monkeypatch.setitem(mfnet_weights.PUBLISHED, NAME, ("http://127.0.0.1:9/sam_vit_b_01ec64.pth", SHA))
    assert mfnet_weights.by_name(NAME).path == reference.path
    reference.path.write_bytes(b"another")
    with pytest.raises(ModelError, match=r"is not the published file(.|\n)*delete it"):
        mfnet_weights.by_name(NAME)


def test_weights_of_other_encoders_come_from_the_hub_with_its_checksum(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    reference = mfnet_weights.by_name("vit_large_patch16_dinov3.sat493m")
    assert reference.address == f"{hub}/timm/vit_large_patch16_dinov3.sat493m/resolve/main/model.safetensors"
    assert reference.path == tmp_path / "cache" / "vit_large_patch16_dinov3.sat493m.safetensors"
    assert reference.sha256 == SHA


def test_what_comes_damaged_is_not_kept(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mfnet_weights.PUBLISHED, NAME, (f"{hub}/bad.pth", SHA))
    with pytest.raises(MissingFileError, match=r"another checksum: SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}"):
        mfnet_weights.by_name(NAME)
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_network_the_message_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANDFUSE_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "PATIENCE", ())
    monkeypatch.setitem(mfnet_weights.PUBLISHED, NAME, ("http://127.0.0.1:9/sam_vit_b_01ec64.pth", SHA))
    with pytest.raises(MissingFileError) as raised:
        MFNet({"a": 3}, 3, encoder_options=TINY, view=64).load_pretrained()
    assert raised.value.expected == f"the file {tmp_path / 'sam_vit_b_01ec64.pth'}"
    assert "http://127.0.0.1:9/sam_vit_b_01ec64.pth" in raised.value.do
    assert "weights: path/to/file" in raised.value.do


def test_encoders_without_published_weights_say_so() -> None:
    with pytest.raises(ModelError, match="no published weights for `samvit_base_patch16_224`"):
        mfnet_weights.by_name("samvit_base_patch16_224")


def test_the_published_addresses_name_files_of_segment_anything() -> None:
    for name, (address, sha) in mfnet_weights.PUBLISHED.items():
        assert address.rpartition("/")[2].startswith(f"sam_vit_{name.split('_')[1][0]}_")
        assert len(sha) == 64
