"""The settings of every model: what a recipe may say under `model:` beside its name. Imports no torch.

A model's class has its own as `Settings`; `landfuse.models.SETTINGS` has all of them by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from landfuse.settings import Chance, Count, Options, Rate, Settings, Side, Weight

Operator = Literal["fusion", "group_attention", "cross_attention"]


def _preset(presets: Mapping[str, Mapping[str, object]]) -> Any:
    """The field of a model that has presets, which says what they set."""
    sets = [
        f"`{name}`: {', '.join(f'`{key}` {value}' for key, value in values.items())}"
        for name, values in presets.items()
    ]
    meant = "Other defaults, for a small machine or few labels; settings that are written out win over them."
    return Field(default=None, description=f"{meant} {'; '.join(sets)}.")


class MutualSettings(Settings):
    """How branches of BDGF learn from each other."""

    retired: ClassVar[Mapping[str, tuple[object, str]]] = {
        "probabilities": ("weighted", "branches learn from the others' mean, weighted by certainty; remove it"),
        "features": ("cosine", "features are aligned by their cosine; remove it"),
        "temperature": (2.0, "probabilities are softened by a temperature of 2; remove it"),
        "ramp": (0.2, "both parts rise over the first fifth of the training; remove it"),
    }
    retired_training: ClassVar[frozenset[str]] = frozenset(retired)

    probability_weight: Weight = Field(
        default=0.5,
        description="Weight of learning from the others' mean probabilities, in which certain branches count more; 0 "
        "for none.",
    )
    feature_weight: Weight = Field(
        default=0.1, description="Weight of aligning the branches' features by their cosine; 0 for none."
    )


class OperatorSettings(Settings):
    """How each kind of branch of BDGF is guided."""

    cnn: Operator = Field(default="fusion", description="Operator of `cnn` branches.")
    mamba: Operator = Field(default="group_attention", description="Operator of `mamba` branches.")
    transformer: Operator = Field(default="cross_attention", description="Operator of `transformer` branches.")


class BdgfSettings(Settings):
    """Settings of BDGF."""

    about: ClassVar[str] = "BDGF: branches guided by a diffusion model that learns without labels"
    cost: ClassVar[str] = "hours on a CPU, minutes on a GPU"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"core": 5, "width": 32, "embedding": 64, "states": 4}
    }
    preset: Literal["small"] | None = _preset(presets)
    view: Side = Field(default=11, description="Side of the patch, px.")
    core: Side = Field(
        default=1,
        description="Side of the centred square that is labelled, px; 1 classifies single pixels, 5 maps 25 at once.",
    )
    width: int = Field(
        default=64, ge=4, le=16_384, description="D, channels of the branches; a multiple of `heads` and `groups`."
    )
    embedding: int = Field(default=128, ge=1, le=16_384, description="Features that each branch reads out.")
    branches: tuple[Literal["cnn", "mamba", "transformer"], ...] = Field(
        default=("cnn", "mamba", "transformer"), description="Which branches; a kind may come several times."
    )
    guidance: Literal["full", "one_level_each", "raw", "none"] = Field(
        default="full",
        description="`full` guides every branch by level 1, 2, 3 in its first, second, third stage; `one_level_each` "
        "guides the first branch by level 1 in all stages, the second by level 2, and so on; `raw` uses the modalities "
        "themselves instead of the features, a control of nearly as many parameters; `none` ignores the features.",
    )
    operators: OperatorSettings = Field(default=OperatorSettings(), description="How each kind of branch is guided.")
    timesteps: int = Field(default=3, ge=1, le=1000, description="Number of timesteps of the diffusion features.")
    states: int = Field(default=16, ge=1, le=64, description="N, states per channel of the scans.")
    heads: int = Field(default=4, ge=1, le=16_384, description="Heads of the attention.")
    groups: int = Field(default=8, ge=1, le=16_384, description="Groups of the group channel attention.")
    ensemble: bool = Field(
        default=True,
        description="Average the probabilities of the final head and the branches' heads; else the final head alone.",
    )
    linear: bool = Field(
        default=False,
        description="Also classify each pixel by a linear layer on its own diffusion features, which learns by itself, "
        "and average its probabilities and those of the network, half and half. Best with few labels.",
    )
    label_smoothing: Chance = Field(default=0.05, description="Fraction of each label that is spread over all classes.")
    mutual: MutualSettings = Field(default=MutualSettings(), description="How branches learn from each other.")

    @model_validator(mode="after")
    def _width_divides(self) -> BdgfSettings:
        if not self.branches:
            raise ValueError("name at least one branch: cnn, mamba, transformer")
        operators = {getattr(self.operators, kind) for kind in self.branches if self.guidance != "none"}
        for name, parts, used in (
            ("heads", self.heads, "transformer" in self.branches or "cross_attention" in operators),
            ("groups", self.groups, "group_attention" in operators),
        ):
            if used and self.width % parts:
                raise ValueError(f"`width` is {self.width}, which the {parts} `{name}` do not divide")
        return self


class PixelSettings(Settings):
    """Settings of every model that sees a pixel and the windows around it as a table of numbers."""

    earlier: ClassVar[Mapping[str, Any]] = {"context": []}
    context: tuple[Annotated[int, Field(ge=3, le=255)], ...] = Field(
        default=(3, 7, 15),
        description="Sides of square windows around the pixel, px of the scene's grid, odd: the mean and the standard "
        "deviation of each channel in each of them are further features. Pixels without data are left out, as is what "
        "lies beyond the scene. `[]` for the pixel alone.",
    )
    pixels: int = Field(
        default=100_000, ge=2, le=10**9, description="Training pixels at most, drawn at random where there are more."
    )
    balanced: bool = Field(default=False, description="Weigh classes by the inverse of their frequency.")

    @field_validator("context")
    @classmethod
    def _odd_and_rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(size % 2 == 0 for size in value) or list(value) != sorted(set(value)):
            raise ValueError("windows have odd sides, which rise, e.g. [3, 7, 15]")
        return value

    @property
    def windows(self) -> tuple[int, ...]:
        """The sides of the windows that are used."""
        return self.context

    @property
    def view(self) -> int:
        """Side of the square that the model looks at, px."""
        return max(self.windows, default=1)


class BoostedSettings(PixelSettings):
    """Settings of gradient boosting."""

    about: ClassVar[str] = "gradient-boosted trees on a pixel and its surroundings; takes missing modalities"
    cost: ClassVar[str] = "seconds on a CPU"
    rounds: int = Field(
        default=300,
        ge=1,
        le=10**5,
        description="Rounds at most, of one tree per class each. Where there are validation pixels, it stops after "
        "`patience` rounds that do not improve their loss.",
    )
    patience: int = Field(default=10, ge=1, le=10**5, description="Rounds without a better validation loss.")
    rate: Rate = Field(default=0.1, description="Learning rate: how much of each tree is added.")
    leaves: int = Field(default=31, ge=2, le=10**5, description="Leaves of a tree at most.")
    leaf: Count = Field(default=5, description="Fewest training pixels in a leaf.")
    ridge: Weight = Field(default=1.0, description="L2 penalty of the leaves' values.")


class ForestSettings(PixelSettings):
    """Settings of the random forest."""

    about: ClassVar[str] = "random forest on a pixel and its surroundings, the baseline to beat"
    cost: ClassVar[str] = "seconds on a CPU"
    trees: int = Field(default=200, ge=1, le=100_000, description="Number of trees.")
    depth: int | None = Field(default=None, ge=1, le=10**6, description="Limit of their depth; null for none.")
    leaf: Count = Field(default=1, description="Fewest training pixels in a leaf.")
    features: Annotated[float, Field(gt=0, le=1)] | Literal["sqrt", "log2"] = Field(
        default="sqrt", description="Fraction of the features tried at a split; `sqrt` for their square root."
    )


class LogisticSettings(PixelSettings):
    """Settings of logistic regression."""

    about: ClassVar[str] = "logistic regression, the linear probe of pixels, surroundings or diffusion features"
    cost: ClassVar[str] = "seconds on a CPU"
    features: Literal["pixels", "context", "diffusion"] = Field(
        default="context",
        description="`pixels`: the channels of the pixel; `context`: those of its surroundings too; `diffusion`: only "
        "the pixel's diffusion features, which `pretrain:` and `features:` of the recipe make.",
    )
    inverse_penalty: float = Field(
        default=1.0, gt=0, le=1e9, description="Inverse strength of the L2 penalty, C in scikit-learn."
    )
    steps: Count = Field(default=1000, description="Steps of the solver (L-BFGS) at most.")

    @property
    def windows(self) -> tuple[int, ...]:
        return self.context if self.features == "context" else ()


class MFNetSettings(Settings):
    """Settings of MFNet."""

    about: ClassVar[str] = "MFNet: a frozen Segment Anything encoder, fine-tuned for several modalities"
    cost: ClassVar[str] = "needs a GPU to train"
    encoder: str = Field(
        default="samvit_base_patch16",
        description="timm's name of a ViT, e.g. samvit_base_patch16, sam2_hiera_tiny, "
        "vit_large_patch16_dinov3.sat493m.",
    )
    weights: str = Field(
        default="pretrained",
        description="`pretrained` (published weights, fetched once), `random`, or the path of a file.",
    )
    encoder_options: Options = Field(
        default_factory=dict, description="Passed to timm, for an encoder of another size; its weights must fit."
    )
    encoder_zoom: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Pixels of the encoder per pixel of the scene's grid; by default the finest modality's.",
    )
    finetune: str = Field(default="adapter", description="adapter, lora, both, none or full.")
    first_block: int = Field(
        default=0, ge=0, le=1000, description="Blocks before it are not fine-tuned, and keep no activations; from 0."
    )
    rank: int = Field(default=4, ge=1, le=16_384, description="Rank of LoRA.")
    exchange: bool = Field(
        default=True,
        description="Exchange the updates of adapters and LoRA between the modalities; false for plain ones of each.",
    )
    bottleneck: float = Field(
        default=0.25, gt=0, le=1, description="Width of an adapter's hidden layer, as a fraction of the encoder's."
    )
    checkpointing: bool = Field(
        default=False,
        description="Recompute each block in the backward pass, for less memory and about a third more time.",
    )
    view: Side = Field(default=256, description="Side of the square that is looked at, px of the scene's grid.")
    core: Side | None = Field(
        default=None, description="Side of the centred square that is labelled, px; by default the view."
    )
    deep_fusion: bool = Field(
        default=True,
        description="Fuse by the Deep Fusion Module: a pyramid of each modality, gated at four scales. False for the "
        "sum of the modalities' features, which the decoder then only enlarges.",
    )
    decoder_features: int = Field(
        default=64, ge=8, le=16_384, multiple_of=8, description="Channels within the decoder, a multiple of 8."
    )
    dropout: Chance = Field(default=0.1, description="Dropout of channels before the scores.")
    merged: bool = Field(
        default=False,
        description="LoRA is folded into the weights, as `landfuse export --merge` leaves it; not for training.",
    )

    @field_validator("finetune")
    @classmethod
    def _known(cls, value: str) -> str:
        known = ("adapter", "lora", "both", "none", "full")
        if value not in known:
            raise ValueError(f"no such fine-tuning; known: {', '.join(known)}")
        return value


class RefNetSettings(Settings):
    """Settings of REF-Net; the defaults are those of the paper's recipe for DFC2020, without pretrained weights."""

    about: ClassVar[str] = "REF-Net: features split into what two sensors share and what differs"
    cost: ClassVar[str] = "hours on a CPU, minutes on a GPU"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"small": {"view": 64, "encoder": "resnet10t", "width": 32}}
    retired: ClassVar[Mapping[str, tuple[object, str]]] = {
        "expansion": (2.0, "SS2D has two inner channels per channel; remove it"),
        "mlp_ratio": (4.0, "perceptrons have four hidden channels per channel; remove it"),
    }

    preset: Literal["small"] | None = _preset(presets)
    view: Side = Field(default=256, description="Side of the square that is looked at, px.")
    core: Side | None = Field(
        default=None, description="Side of the centred square that is labelled, px; by default the view."
    )
    encoder: str | dict[str, str] = Field(
        default="resnet50",
        description="A timm backbone with features at stride 2 to 32, for all modalities or by name of modality.",
    )
    pretrained: bool = Field(
        default=False,
        description="Start the encoders from timm's published weights, adapted to the number of channels.",
    )
    weights: dict[str, Path] = Field(
        default={}, description="Files to start encoders from instead, by name of modality, adapted likewise."
    )
    width: int = Field(default=128, ge=1, le=16_384, description="Channels of the decoders.")
    states: int = Field(default=1, ge=1, le=64, description="N, states per channel of the scans.")
    drop_path: Chance = Field(
        default=0.1, description="Fraction of samples for which a branch of a VSS block is left out in training."
    )
    auxiliary_weight: Weight = Field(default=0.005, description="Weight of the auxiliary losses.")
    fusion: Literal["decompose", "concatenate", "sum"] = Field(
        default="decompose",
        description="How features of the modalities are fused: `decompose` into what they share and what they differ "
        "in (MDF-VSS); for comparison `concatenate`, by a 3 x 3 convolution, or their `sum`.",
    )
    share: bool = Field(default=True, description="Use the shared features; of `decompose`.")
    difference: bool = Field(default=True, description="Use the differing features; of `decompose`.")
    enhance: bool = Field(default=True, description="Train the MSIE decoder and its auxiliary heads.")

    @model_validator(mode="after")
    def _something_is_fused(self) -> RefNetSettings:
        if self.fusion != "decompose" and not (self.share and self.difference):
            raise ValueError(f"`share` and `difference` belong to `fusion: decompose`, and `fusion` is {self.fusion}")
        if not (self.share or self.difference):
            raise ValueError("with both `share` and `difference` off nothing would be left to fuse")
        return self


class StackedSettings(Settings):
    """Settings of the stacked segmentation network."""

    about: ClassVar[str] = "all bands stacked into one segmentation network"
    cost: ClassVar[str] = "an hour on a CPU, minutes on a GPU"
    architecture: str = Field(
        default="Unet", description="Of segmentation-models-pytorch, e.g. `Unet`, `DeepLabV3Plus`, `Segformer`."
    )
    encoder: str = Field(
        default="resnet18", description="Its name there, e.g. `resnet18`, or `tu-` and any timm backbone."
    )
    weights: str | None = Field(
        default=None,
        description="Pretrained weights: their name there, e.g. `imagenet` (fetched once); or, of a `tu-` encoder, the "
        "path of a file (.pth, .pt, .safetensors); null for none.",
    )
    view: Side = Field(default=128, description="Side of the window, px.")
    core: Side | None = Field(
        default=None, description="Side of the centred square that is labelled, px; by default the view."
    )


class TemporalSettings(Settings):
    """Settings of the temporal attention network."""

    about: ClassVar[str] = "attention over the dates of each modality, gaps as they are, joined late"
    cost: ClassVar[str] = "an hour on a CPU, minutes on a GPU"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"small": {"view": 3, "width": 32, "heads": 4}}
    preset: Literal["small"] | None = _preset(presets)
    view: Side = Field(
        default=5,
        description="Side of the patch, px; each ring of pixels beyond the core is a 3 x 3 convolution, and with a "
        "view as large as the core each pixel is seen by itself.",
    )
    core: Side = Field(
        default=1,
        description="Side of the centred square that is labelled, px; 1 classifies single pixels, 8 in a view of 12 "
        "maps 64 at once, several times as fast.",
    )
    width: int = Field(default=64, ge=4, le=16_384, description="Features of a date; a multiple of `heads`.")
    heads: int = Field(default=8, ge=1, le=16_384, description="Heads of the attention, which share the features.")
    keys: int = Field(default=8, ge=1, le=1024, description="Numbers by which a head chooses dates.")
    dropout: Chance = Field(default=0.3, description="Fraction of the joined features dropped in training.")

    @model_validator(mode="after")
    def _heads_divide(self) -> TemporalSettings:
        if self.width % self.heads:
            raise ValueError(f"`width` is {self.width}, which the {self.heads} `heads` do not divide")
        return self


class TwoBranchSettings(Settings):
    """Settings of the two-branch CNN."""

    about: ClassVar[str] = "a small CNN per modality, joined late"
    cost: ClassVar[str] = "minutes on a CPU"
    view: Side = Field(default=11, description="Side of the patch, px; odd.")
    width: int = Field(default=64, ge=4, le=16_384, description="Features of each branch.")
    dropout: Chance = Field(default=0.3, description="Fraction of the joined features dropped in training.")
