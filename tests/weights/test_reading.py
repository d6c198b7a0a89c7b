"""Weights files of every kind that lies about, by their first bytes; nothing in one may run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from adc_edge.errors import ModelError
from adc_edge.weights.reading import read_contents

TENSORS = {"a": torch.arange(6.0).reshape(2, 3)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.bin"])
@pytest.mark.parametrize("form", ["safetensors", "zip", "before torch 1.6"])
def test_the_contents_decide_how_a_file_is_read_not_its_name(tmp_path: Path, name: str, form: str) -> None:
    file = tmp_path / name
    if form == "safetensors":
        file.write_bytes(save(TENSORS))
    else:
        torch.save(TENSORS, tmp_path / "saved", _use_new_zipfile_serialization=form == "zip")
        (tmp_path / "saved").rename(file)
    assert torch.equal(read_contents(file).value["a"], TENSORS["a"])


def test_the_metadata_of_a_safetensors_file_is_kept(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"class_names": '["a"]'})
    assert read_contents(tmp_path / "x.safetensors").metadata == {"class_names": '["a"]'}


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        (b"", "is empty"),
        (LFS, "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}', "index of weights in several files"),
        (b'{"hidden_size": 192}', "JSON"),
        (b"ab", "damaged"),
        (b"not weights at all", "damaged"),
        (save(TENSORS)[:8] + b"{" + b"!" * 100, "damaged"),
        (save(TENSORS)[:-5], "damaged"),
    ],
)
def test_a_file_that_is_not_weights_is_refused_with_what_it_is(tmp_path: Path, contents: bytes, what: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(contents)
    with pytest.raises(ModelError, match=f"(?s){what}"):
        read_contents(file)


def test_a_file_of_another_format_is_refused_with_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    with pytest.raises(ModelError, match="HDF"):
        read_contents(tmp_path / "x.h5")


def test_a_torch_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    for form in (True, False):
        torch.save(TENSORS, tmp_path / "whole.pth", _use_new_zipfile_serialization=form)
        (tmp_path / "x.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:200])
        with pytest.raises(ModelError, match="damaged"):
            read_contents(tmp_path / "x.pth")


def test_another_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(ModelError, match="NumPy archive"):
        read_contents(tmp_path / "x.npz")


def test_a_path_that_is_no_file_is_refused_and_a_directory_lists_its_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file"):
        read_contents(tmp_path / "absent.pth")
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"(?s)is a directory.*name the file: model.safetensors"):
        read_contents(tmp_path)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    torch.save(
        {"model": TENSORS, "x": Evil(tmp_path / "ran")}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(ModelError, match=r"(?s)mkdir.*weights_only=True"):
        read_contents(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_with_python_objects_is_refused_with_their_name_and_the_way_to_save_its_weights(
    tmp_path: Path,
) -> None:
    torch.save({"model": TENSORS, "args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"(?s)argparse.Namespace.*torch.save\(c\['model'\]"):
        read_contents(tmp_path / "x.pth")
