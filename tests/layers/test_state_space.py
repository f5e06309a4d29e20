"""SS2D and the VSS block: the fused image scan against its definition, and the names of VMamba."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from landfuse.errors import ModelError
from landfuse.kernels import scan_native
from landfuse.kernels.scan_image import image_scan, image_scan_plain
from landfuse.kernels.scan_inputs import ImageInputs
from landfuse.layers.state_space import SS2D, VSSBlock, from_vmamba

native = pytest.param(
    "native", marks=pytest.mark.skipif(not scan_native.available(), reason="the kernel was not built")
)


def inputs(batch: int, height: int, width: int, channels: int, states: int, rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        draw(batch, height, width, channels),
        draw(batch, height, width, 4 * (rank + 2 * states)),
        -torch.exp(0.3 * draw(4 * channels, states)),
        0.3 * draw(4 * channels, rank),
        draw(4 * channels) - 2,
        draw(4 * channels),
    ]


def by_hand(x: Tensor, factors: Tensor, A: Tensor, weight: Tensor, bias: Tensor, D: Tensor) -> Tensor:
    """The definition once more, pixel by pixel."""
    batch, height, width, channels = x.shape
    states, rank = A.shape[1], weight.shape[1]
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    y = torch.zeros_like(x)
    for k, walk in enumerate((rows, columns, rows[::-1], columns[::-1])):
        at = slice(k * channels, (k + 1) * channels)
        h = torch.zeros(batch, channels, states, dtype=x.dtype)
        for i, j in walk:
            r, B, C = factors[:, i, j].chunk(4, -1)[k].split([rank, states, states], -1)
            delta = torch.log1p(torch.exp(r @ weight[at].t() + bias[at]))
            h = torch.exp(delta[..., None] * A[at]) * h + (delta * x[:, i, j])[..., None] * B[:, None]
            y[:, i, j] += (h * C[:, None]).sum(-1) + D[at] * x[:, i, j]
    return y


def test_the_plain_image_scan_is_the_definition() -> None:
    tensors = inputs(2, 3, 5, 4, 2, 2)
    torch.testing.assert_close(image_scan_plain(*tensors), by_hand(*tensors))


@pytest.mark.parametrize("path", [native, "torch", *(pytest.param(isa, marks=native.marks) for isa in (0, 1))])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 5, 7, 8, 1, 2),
        (1, 16, 16, 70, 3, 1),
        (3, 1, 9, 16, 16, 4),
        (2, 20, 1, 33, 5, 3),
        (1, 1, 1, 4, 1, 1),
        (1, 5, 9, 130, 1, 9),
    ],
)
def test_the_fused_scan_and_its_gradients(
    path: str | int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(path, int):  # the kernel of an older instruction set
        make, isa, path = scan_native._image, path, "native"

        def chosen(given: ImageInputs) -> tuple[object, ...]:
            arguments, *rest = make(given)
            arguments.isa = isa
            return arguments, *rest

        monkeypatch.setattr(scan_native, "_image", chosen)
    tensors = inputs(*shape)
    dy = torch.randn(shape[:4], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truths = [t.clone().requires_grad_() for t in tensors]
    expected = image_scan_plain(*truths)
    expected.backward(dy)
    leaves = [t.float().requires_grad_() for t in tensors]
    y = image_scan(*leaves, path=path)
    y.backward(dy.float())
    names = ("y", "x", "factors", "A", "rank_weight", "delta_bias", "D")
    pairs = [(y, expected), *((a.grad, b.grad) for a, b in zip(leaves, truths, strict=True))]
    for name, (found, truth) in zip(names, pairs, strict=True):
        if name == "A" and shape[1] * shape[2] == 1:
            continue  # nothing decays
        error = ((found.double() - truth).abs().max() / truth.abs().max()).item()
        assert error < 1e-5, (name, error)


def test_gradcheck() -> None:
    tensors = [t.requires_grad_() for t in inputs(1, 3, 4, 3, 2, 2)]
    assert torch.autograd.gradcheck(lambda *a: image_scan(*a, path="torch"), tensors)


@pytest.mark.parametrize("path", [native, "torch"])
def test_the_operator_keeps_torchs_contract(path: str) -> None:
    tensors = tuple(t.float().requires_grad_() for t in inputs(2, 4, 5, 6, 2, 2))
    torch.library.opcheck(torch.ops.landfuse.image_scan.default, (*tensors, True, path), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", [native, "torch"])
def test_a_nan_pixel_spreads_to_all_pixels_of_its_channel_only(path: str) -> None:
    tensors = [t.float() for t in inputs(2, 4, 5, 6, 2, 2)]
    clean = image_scan(*tensors, path=path)
    tensors[0][1, 2, 3, 4] = torch.nan
    y = image_scan(*tensors, path=path)
    assert y[1, ..., 4].isnan().all()  # walks in both ways pass every pixel
    y[1, ..., 4] = clean[1, ..., 4]
    assert torch.equal(y, clean)


def test_a_strided_image_gives_the_same() -> None:
    tensors = [t.float() for t in inputs(2, 4, 5, 6, 2, 2)]
    strided = [tensors[0].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), *tensors[1:]]
    torch.testing.assert_close(image_scan(*strided), image_scan(*tensors))


@pytest.mark.parametrize(
    ("index", "wrong", "words"),
    [
        (0, torch.rand(2, 4, 5), ["`x`", "(2, 4, 5)"]),
        (0, torch.rand(2, 0, 5, 6), ["`x`", "(2, 0, 5, 6)"]),
        (1, torch.rand(2, 4, 5, 23), ["`factors`", "(2, 4, 5, 23)", "(2, 4, 5, 24)"]),
        (2, -torch.rand(12, 2), ["`A`", "(12, 2)", "(24, 2)"]),
        (3, torch.rand(24, 0), ["`rank_weight`", "(24, 0)"]),
        (5, torch.rand(6), ["`D`", "(6,)", "(24,)"]),
    ],
)
def test_mistakes_name_the_argument_and_its_shape(index: int, wrong: Tensor, words: list[str]) -> None:
    tensors = [t.float() for t in inputs(2, 4, 5, 6, 2, 2)]
    tensors[index] = wrong
    with pytest.raises(ModelError) as caught:
        image_scan(*tensors)
    assert all(word in str(caught.value) for word in words), caught.value


def test_fresh_layers_start_as_mamba_says() -> None:
    torch.manual_seed(0)
    layer = SS2D(32, states=4)
    torch.testing.assert_close(layer.log_A.exp()[7], torch.arange(1.0, 5.0))
    delta = torch.nn.functional.softplus(layer.delta_bias)
    assert 0.00099 < delta.min() < 0.002
    assert 0.05 < delta.max() < 0.101
    assert layer.rank_weight.shape == (4 * 64, 2)


def test_every_pixel_sees_every_other_and_every_parameter_learns() -> None:
    torch.manual_seed(0)
    block = VSSBlock(8, states=2)
    x = torch.randn(1, 8, 5, 6, requires_grad=True)
    y = block(x)
    assert y.shape == x.shape
    (dx,) = torch.autograd.grad(y[0, :, 2, 3].sum(), x, retain_graph=True)
    assert (dx.abs().sum(1) > 0).all()
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_a_block_works_under_autocast_and_compiled() -> None:
    torch.manual_seed(0)
    block, x = VSSBlock(8), torch.randn(1, 8, 4, 4)
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = block(x)
    torch.testing.assert_close(low.float(), expected, rtol=0.1, atol=0.1)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), expected)


def test_vmambas_names_cover_every_parameter() -> None:
    block = VSSBlock(16, states=2)
    theirs = {
        "norm.weight": (16,),
        "norm.bias": (16,),
        "norm2.weight": (16,),
        "norm2.bias": (16,),
        "op.in_proj.weight": (32, 16, 1, 1),
        "op.conv2d.weight": (32, 1, 3, 3),
        "op.x_proj_weight": (4, 5, 32),
        "op.dt_projs_weight": (4, 32, 1),
        "op.dt_projs_bias": (4, 32),
        "op.A_logs": (128, 2),
        "op.Ds": (128,),
        "op.out_norm.weight": (32,),
        "op.out_norm.bias": (32,),
        "op.out_proj.weight": (16, 32),
        "mlp.fc1.weight": (64, 16),
        "mlp.fc1.bias": (64,),
        "mlp.fc2.weight": (16, 64),
        "mlp.fc2.bias": (16,),
    }
    block.load_state_dict(from_vmamba({name: torch.randn(shape) for name, shape in theirs.items()}))
    with pytest.raises(KeyError, match=r"op\.unknown"):
        from_vmamba({"op.unknown": torch.zeros(1)})


@pytest.fixture
def build() -> object:
    path = Path(__file__).parents[2] / "hatch_build.py"
    if importlib.util.find_spec("hatchling") is None or not path.exists():
        pytest.skip("hatchling is not installed, or this is no checkout")
    spec = importlib.util.spec_from_file_location("landfuse_hatch_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_failing_compiler_leaves_a_pure_wheel(build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hatchling.builders.wheel import WheelBuilder

    native_folder = tmp_path / "src" / "landfuse" / "layers" / "native"
    native_folder.mkdir(parents=True)
    (tmp_path / "src" / "landfuse" / "__init__.py").touch()
    (native_folder / "broken.cpp").write_text("this is no C++")
    (tmp_path / "hatch_build.py").write_text((Path(build.__file__)).read_text())
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "landfuse"\nversion = "0"\n[tool.hatch.build.targets.wheel]\npackages = ["src/landfuse"]\n'
        "[tool.hatch.build.targets.wheel.hooks.custom]\n"
    )
    monkeypatch.delenv("LANDFUSE_KERNEL", raising=False)
    wheel = Path(next(WheelBuilder(str(tmp_path)).build(directory=str(tmp_path / "dist"), versions=["standard"])))
    assert wheel.name.endswith("-none-any.whl")
    assert not any("landfuse_scan." in name for name in zipfile.ZipFile(wheel).namelist())


def test_an_unknown_target_is_refused(build) -> None:
    with pytest.raises(ValueError, match="amiga"):
        build.build(Path(), "amiga")
