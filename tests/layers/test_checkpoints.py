"""Files of weights: junk, other names for the same tensors, and files that lack some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from landfuse.errors import ModelError
from landfuse.layers.checkpoints import read_checkpoint, read_tensors, timm_weights


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut off", bytes(range(256)) * 9, b"\x80\x02]q\x00."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_checkpoint(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="file"):
        read_tensors(path)


def test_junk_that_unpickles_part_of_the_way(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pth").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole))])
        data[rng.integers(len(data))] = rng.integers(256)
        (tmp_path / "cut.pth").write_bytes(data)
        with pytest.raises(ModelError):
            read_tensors(tmp_path / "cut.pth")


@pytest.mark.parametrize("content", [3.0, torch.tensor(1.0), [torch.zeros(1)], {}, {"model": 3}, {"a": 1}, "text"])
def test_what_holds_no_named_tensors(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ModelError, match=r"holds .*, not named tensors"):
        read_tensors(tmp_path / "file.pth")


def test_names_of_another_library_and_missing_weights(tmp_path: Path) -> None:
    whole = timm.create_model("resnet10t")
    encoder = timm.create_model("resnet10t", features_only=True, in_chans=5)
    state = whole.state_dict()
    other = {f"theirs_{number}.{name.rpartition('.')[2]}": one for number, (name, one) in enumerate(state.items())}
    torch.save({"epoch": 3, "state_dict": other}, tmp_path / "other.pth")
    assert read_checkpoint(tmp_path / "other.pth")["epoch"] == 3
    found = timm_weights(tmp_path / "other.pth", "resnet10t", encoder)
    assert found.keys() == state.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, state[name]) for name, value in found.items())
    with pytest.raises(ModelError, match=r"lacks [0-9]+ weights of resnet14t, such as `"):
        timm_weights(tmp_path / "other.pth", "resnet14t", timm.create_model("resnet14t", features_only=True))
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ModelError, match=r"lacks 1 weights of resnet10t, such as `layer3\.0\.conv1\.weight`"):
        timm_weights(tmp_path / "less.pth", "resnet10t", encoder)
