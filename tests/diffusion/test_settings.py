"""Settings of the first stage: what older recipes say is read or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from landfuse.diffusion.settings import BalanceSettings, FeatureSettings, PretrainSettings
from landfuse.errors import SettingsError
from landfuse.settings import Settings, parse

OLD = Path(__file__).resolve().parents[1] / "data" / "old" / "runs" / "bdgf"
FORMER: dict[str, Any] = {
    "progress": 0.5, "weight_rate": 0.0, "imputation": 0.0, "evenness": 0.1, "cell": 8, "most": 0.6, "rest": 0.5,
    "even": False, "kappa": 2.0,
}  # fmt: skip
"""The balance's settings that are constants now, with the defaults that they had."""


@pytest.mark.parametrize(
    ("former", "kind"),
    [
        ({}, "swap"),
        ({"kind": "adaptive"}, "swap"),
        ({"hide": "swap"}, "swap"),
        ({"kind": "adaptive", "hide": "swap"}, "swap"),
        ({"kind": "adaptive", "hide": "whole"}, "paper"),
        ({"hide": "whole"}, "paper"),
        ({"kind": "none"}, "none"),
        ({"kind": "none", "hide": "swap"}, "none"),
        ({"kind": "none", "hide": "whole"}, "none"),
        ({"kind": "paper"}, "paper"),
    ],
)
def test_former_names_of_the_balance_are_translated(former: dict[str, str], kind: str) -> None:
    expected = BalanceSettings(kind=kind, gamma=0.25, warmup=7, every=3)  # type: ignore[arg-type]
    same = {"gamma": 0.25, "warmup": 7, "every": 3}
    assert parse(BalanceSettings, {**former, **same}, "balance") == expected
    assert parse(BalanceSettings, {**former, **same, **FORMER}, "balance") == expected, "retired at their defaults"


@pytest.mark.parametrize("kind", ["gap", "grad", "opm", "fixed"])
def test_kinds_of_balance_that_no_longer_exist_are_refused(kind: str) -> None:
    with pytest.raises(SettingsError, match=rf"`kind: {kind}` with `hide: whole` no longer exists(.|\n)*none, paper"):
        parse(PretrainSettings, {"balance": {"kind": kind, "hide": "whole"}}, "here")
    read = parse(PretrainSettings, {"balance": {"kind": kind, "hide": "whole"}}, "here", saved=True)
    assert read.balance.kind == "paper", "what was saved is still read"


def test_masking_in_cells_is_refused() -> None:
    with pytest.raises(SettingsError, match="`kind: adaptive` with `hide: cells` no longer exists"):
        parse(BalanceSettings, {"hide": "cells"}, "here")
    with pytest.raises(SettingsError, match=r"`kind` is 'gaps'"):
        parse(BalanceSettings, {"kind": "gaps"}, "here")


@pytest.mark.parametrize(("name", "value"), [(name, 0.25) for name in FORMER if name != "even"] + [("even", True)])
def test_a_retired_setting_with_another_value_is_refused(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"`{name}` no longer exists; leave it out"):
        parse(PretrainSettings, {"balance": {name: value}}, "here")
    read = parse(PretrainSettings, {"balance": {name: value}}, "here", saved=True)
    assert read == PretrainSettings(), "what was saved is still read: it concerns training alone"
    assert name not in BalanceSettings.model_fields


def test_features_are_no_longer_computed_from_views() -> None:
    assert parse(FeatureSettings, {"mode": "scene"}, "features") == FeatureSettings()
    for saved in (False, True):  # other features would reach the model
        with pytest.raises(SettingsError, match=r"`mode` no longer exists; features are computed once per scene"):
            parse(FeatureSettings, {"mode": "patch"}, "features", saved=saved)


def test_retired_settings_of_one_class_are_those_of_no_other() -> None:
    class Kept(Settings):
        retired = {"old": (1, "use new"), "pace": (0.5, "leave it out")}
        retired_training = frozenset({"pace"})
        new: int = 2

    assert parse(Kept, {"old": 1, "new": 3}, "here") == Kept(new=3)
    assert Kept(old=1).model_dump() == {"new": 2}  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match="`old` no longer exists; use new"):
        parse(Kept, {"old": 2}, "here")
    with pytest.raises(SettingsError, match="`old` no longer exists; use new"):
        parse(Kept, {"old": 2}, "here", saved=True)
    with pytest.raises(SettingsError, match="`pace` no longer exists; leave it out"):
        parse(Kept, {"pace": 2}, "here")
    assert parse(Kept, {"pace": 2, "old": 1}, "here", saved=True) == Kept()
    with pytest.raises(SettingsError, match="unknown key `mode`"):
        parse(Kept, {"mode": "scene"}, "here")
    with pytest.raises(SettingsError, match="unknown key `mode`"):
        parse(PretrainSettings, {"mode": "scene"}, "here")


def test_the_recipe_of_a_former_run_is_read() -> None:
    values = json.loads((OLD / "recipe.json").read_text(encoding="utf-8"))
    balance = values["pretrain"]["balance"]
    assert {**FORMER, "kind": "adaptive", "hide": "swap"}.items() <= balance.items(), "all former settings, written out"
    assert values["features"]["mode"] == "scene"
    read = parse(PretrainSettings, values["pretrain"], "pretrain")
    assert read.balance == BalanceSettings(kind="swap", gamma=balance["gamma"], warmup=0, every=2)
    assert parse(FeatureSettings, values["features"], "features").timesteps == tuple(values["features"]["timesteps"])


@pytest.mark.parametrize(
    "wrong",
    [{"timesteps": []}, {"timesteps": [1000]}, {"levels": [1, 1]}, {"levels": [4]}, {"tile": 32, "overlap": 32}],
)
def test_features_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        parse(FeatureSettings, wrong, "features")


def test_steps_by_default() -> None:
    assert PretrainSettings().total == 2000
    assert PretrainSettings(start_from="runs/x").total == 0
    assert PretrainSettings(start_from="runs/x", steps=5).total == 5
    assert FeatureSettings(levels=(3, 1)).names == ("diffusion_3", "diffusion_1")


def test_where_features_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LANDFUSE_CACHE", str(tmp_path))
    assert FeatureSettings().folder == tmp_path / "features"
    assert FeatureSettings(cache="here").folder == Path("here")
    monkeypatch.delenv("LANDFUSE_CACHE")
    assert FeatureSettings().folder == Path.home() / ".cache" / "landfuse" / "features"
