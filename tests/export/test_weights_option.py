"""`--weights`, as a user types it: what is said, what is in the bundle, and that a refusal writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from adc_edge.cli import main
from adc_edge.storage.bundle import Bundle
from tests.conftest import TINY

MODEL = "vit_tiny_patch16_224"
OPTIONS = [f"--model-arg={name}={value}" for name, value in TINY.items() if name != "img_size"]
TASK = ["--model", MODEL, "--img-size", "16", *OPTIONS, "--split", "2"]


def state(classes: int = 10, **arguments: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    vit = timm.create_model(MODEL, num_classes=classes, **{**TINY, **arguments})
    return {name: value + 0.01 for name, value in vit.state_dict().items()}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_bundle_has_the_files_own_tensors_classes_and_head(tmp_path: Path) -> None:
    weights = state()
    nested = {"state_dict": {f"model.module.{name}": value for name, value in weights.items()}, "epoch": 3}
    torch.save(nested, tmp_path / "last.ckpt")
    result = run("export", *TASK, "--weights", tmp_path / "last.ckpt", "-o", tmp_path / "b")
    assert result.exit_code == 0, result.output
    words = "(head: kept, 10 classes; unwrapped: state_dict, model., module.)"
    assert f"weights   {len(weights)} of {len(weights)} tensors from last.ckpt {words}" in result.output
    assert Bundle.load(tmp_path / "b", ()).manifest.classes == 10
    found = load_file(tmp_path / "b" / "trunk.safetensors") | load_file(tmp_path / "b" / "head.safetensors")
    assert found.keys() == weights.keys()
    assert [name for name in weights if not torch.equal(found[name], weights[name])] == []


@pytest.mark.parametrize(
    ("weights", "more", "what"),
    [
        ({"foo": torch.zeros(3)}, ["--num-classes", "3"], "another architecture"),
        (state(depth=6), ["--num-classes", "3"], "another depth: 6 blocks, the model has 4"),
        (state() | {"foo": torch.zeros(3)}, [], "1 not used: foo"),
        (state(), ["--img-size", "18"], "image size of 18 with patches of 4"),
        (state(), ["--model-arg", "in_chans=4"], "in_chans=4"),
    ],
    ids=["architecture", "depth", "unused", "image size", "channels"],
)
def test_an_export_that_is_refused_says_why_and_writes_nothing(
    weights: dict[str, torch.Tensor], more: list[str], what: str, tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    result = run("export", *TASK, "--weights", tmp_path / "w.safetensors", "-o", tmp_path / "b", *more)
    assert result.exit_code == 2
    assert what in result.output
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["evaluate", "privacy"])
def test_a_study_refuses_the_same_files_before_its_first_run(name: str, tmp_path: Path) -> None:
    save_file({name: value for name, value in state().items() if name != "pos_embed"}, tmp_path / "w.safetensors")
    result = run(name, *TASK, "--weights", tmp_path / "w.safetensors", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "1 missing: pos_embed" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_of_one_channel_is_exported_trained_merged_and_studied(tmp_path: Path, command: Any) -> None:
    grey, bundle, model = [*TASK, "--model-arg", "in_chans=1"], tmp_path / "b", tmp_path / "m.safetensors"
    save_file(state(), tmp_path / "w.safetensors")
    result = run("export", *grey, "--weights", tmp_path / "w.safetensors", "-o", bundle, "--batch-size", "16")
    assert result.exit_code == 0, result.output
    assert "patches adapted from 3 to 1 channels" in result.output
    runs = tmp_path / "cloud", tmp_path / "device"
    with command("trainer", "--bundle", bundle, "--bind", "tcp://127.0.0.1:*", "--run", runs[0], "--devices", "1") as t:
        lines = iter(t.process.stdout.readline, "")
        endpoint = next(word.rstrip(",") for line in lines for word in line.split() if word.startswith("tcp://"))
        with command("serve", "--bundle", bundle, "--trainer", endpoint, "--steps", "5", "--run", runs[1]) as edge:
            code, output = edge.finish()
            assert code == 0, output
        assert t.finish()[0] == 0
    assert run("merge", "--run-device", runs[1], "--run-trainer", runs[0], "-o", model).exit_code == 0
    study = ["--epochs", "0.1", "--train-images", "64", "--test-images", "32", "--batch-size", "16"]
    options = ["--methods", "none", "--seeds", "0", "-o", str(tmp_path / "study")]
    result = run("evaluate", *grey, "--weights", model, *study, *options)
    assert result.exit_code == 0, result.output
    assert "(head: kept, 10 classes)" in result.output
    assert np.isfinite(load_file(model)["patch_embed.proj.weight"].numpy()).all()
