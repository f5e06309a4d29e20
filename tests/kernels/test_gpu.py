"""What happens where a GPU is missing, too old, or cannot compile; no GPU is needed."""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from landfuse.kernels import gpu, scan, scan_torch

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def asked_again() -> Iterator[None]:
    """What was found out once is found out again, before and after."""
    for found in (gpu.gpu_works, scan._triton_works):
        found.cache_clear()
    yield
    for found in (gpu.gpu_works, scan._triton_works):
        found.cache_clear()


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), ones: Any = torch.ones) -> None:
    """Pretends that there is a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a card")
    monkeypatch.setattr(torch, "ones", ones)


def test_an_old_driver_is_one_sentence_and_the_cpu_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def old() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found 9).\nMore", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        assert [gpu.default_device().type for _ in range(3)] == ["cpu"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "the GPU cannot be used, so the CPU computes: CUDA initialization: The NVIDIA driver on your system is too old "
        "(found 9)."
    ]


def test_without_a_gpu_nothing_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.default_device().type == "cpu"
    assert not caplog.records


def test_a_card_that_this_pytorch_has_no_kernels_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ones(*args: Any, **options: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nand more")

    card(monkeypatch, ones=ones)
    assert gpu.default_device().type == "cpu"
    assert [record.getMessage() for record in caplog.records] == [
        "the GPU cannot be used, so the CPU computes: CUDA error: no kernel image is available for execution on the "
        "device"
    ]


def on_cpu(*args: Any, device: Any = None) -> torch.Tensor:
    return torch.zeros(*args)


def test_a_card_below_compute_capability_8_scans_by_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card(monkeypatch, (7, 5), on_cpu)
    assert gpu.default_device().type == "cuda"
    assert scan.implementation("", CUDA, torch.float32) is scan_torch
    (record,) = caplog.records
    assert record.getMessage().startswith("a card has compute capability 7.5: below 8.0 scans are computed by PyTorch")


@pytest.mark.parametrize("missing", [True, False])
def test_where_triton_is_missing_or_fails_to_compile_pytorch_scans_after_one_warning(
    missing: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card(monkeypatch, ones=on_cpu)
    if missing:
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.delitem(sys.modules, "landfuse.kernels.scan_triton", raising=False)
        monkeypatch.delattr("landfuse.kernels.scan_triton", raising=False)
    else:
        pytest.importorskip("triton")
        from landfuse.kernels import scan_triton

        def broken(device: torch.device) -> None:
            raise RuntimeError("Failed to find C compiler.\nInstall one")

        monkeypatch.setattr(scan_triton, "try_out", broken)
    assert all(scan.implementation(path, CUDA, torch.float32) is scan_torch for path in ("", "", "triton"))
    (record,) = caplog.records
    why = "import of triton halted; None in sys.modules" if missing else "Failed to find C compiler."
    assert record.getMessage() == (
        f"Triton is missing or does not work here, so scans are computed by PyTorch, many times slower: {why}"
    )


@pytest.mark.parametrize("tf32", [True, False])
def test_float32_is_tf32_only_where_that_is_chosen(tf32: bool) -> None:
    def now() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    before = now()
    with gpu.gpu_kernels(CUDA, tf32=tf32, same=True):
        assert now() == ("high" if tf32 else "highest", tf32, True, False)
    assert now() == before
    with gpu.gpu_kernels(torch.device("cpu"), tf32=tf32, same=True):
        assert now() == before


def test_threads_do_not_change_each_others_kernels() -> None:
    """Features of the next block are computed while a block is, each with its own choice."""
    before, seen = torch.backends.cudnn.allow_tf32, []

    def compute(tf32: bool) -> None:
        for _ in range(200):
            with gpu.gpu_kernels(CUDA, tf32=tf32, same=True):
                time.sleep(0)
                seen.append(torch.backends.cudnn.allow_tf32 == tf32)

    threads = [threading.Thread(target=compute, args=(tf32,)) for tf32 in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 400
    assert all(seen)
    assert torch.backends.cudnn.allow_tf32 == before


class Fake:
    """Captures without a GPU: what is replayed reads the captured images and writes the captured result."""

    def __init__(self, error: str = "", idle: bool = False) -> None:
        self.captured, self.replayed, self.error, self.idle = 0, 0, error, idle

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.error:
            raise RuntimeError(self.error)
        self.captured += 1
        output = torch.full_like(function(), 7)  # a capture computes nothing

        def replay() -> None:
            self.replayed += 1
            if not self.idle:
                output.copy_(function())

        return replay, output


def doubled(images: dict[str, Tensor]) -> Tensor:
    return images["a"] * 2 + images["b"].mean(dim=(1, 2, 3), keepdim=True)


def batches(count: int, size: int = 3) -> list[dict[str, Tensor]]:
    a, b = torch.randn(count, size, 4, 5, 5), torch.randn(count, size, 2, 10, 10)
    a[-1, 0, 0, 0, 0] = torch.nan
    return [{"a": x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), "b": y} for x, y in zip(a, b, strict=True)]


def test_passes_of_one_shape_are_captured_once_and_replayed_with_the_same_results() -> None:
    fake = Fake()
    replayed = gpu.Replayed(doubled, fake)
    for size, times in ((3, 1), (2, 2), (3, 3)):
        given = batches(8, size)
        found = [replayed(images) for images in given]
        assert (fake.captured, fake.replayed) == (times, 4 * times)  # the fifth, to compare, and the last three
        for images, result in zip(given, found, strict=True):  # none is overwritten by the next
            assert torch.allclose(result, doubled(images), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("fake", "why"),
    [(Fake("operation not permitted\nand more"), "operation not permitted"), (Fake(idle=True), "other numbers")],
)
def test_what_cannot_be_captured_is_launched_as_before_after_one_warning(
    fake: Fake, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    replayed = gpu.Replayed(doubled, fake)
    for images in batches(9):
        assert torch.allclose(replayed(images), doubled(images), rtol=0, atol=0, equal_nan=True)
    assert fake.replayed == fake.idle
    (record,) = caplog.records
    assert record.getMessage().startswith("the network cannot be captured as a CUDA graph, so its kernels are launched")
    assert record.getMessage().endswith(why)


def test_a_graph_outlives_no_constant_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    made = gpu.constant(lambda size: torch.arange(size))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream, capture_error_mode: nullcontext())
    kept = weakref.ref(made(3))
    replay, output = gpu.captured(lambda: made(3) * 2)
    for size in range(4, 70):
        made(size)  # of the last 64 arguments, the first is none any more
    assert kept() is not None
    assert output.tolist() == [0, 2, 4]
    del replay
    assert kept() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_graph_gives_the_networks_bytes(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 3, 1)).cuda()
    network.eval().to(memory_format=torch.channels_last)

    def run(images: dict[str, Tensor]) -> Tensor:
        return network(images["a"])

    replayed = gpu.Replayed(run)
    with torch.inference_mode(), gpu.gpu_kernels(CUDA, tf32=False, same=True):
        given = [{"a": images["a"].cuda()} for images in batches(12)]
        for images, found in [(images, replayed(images)) for images in given]:
            assert torch.allclose(found, run(images), rtol=0, atol=0, equal_nan=True)
    assert not caplog.records
    assert replayed._run is not run
