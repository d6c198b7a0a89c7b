"""pictures.json of a study: measured once, kept, and replaced by a note where the data are gone."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import msgspec
import pytest

from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.totals.beside import NO_PICTURES, beside_of
from tests.conftest import TINY
from tests.data.test_pictures import a_folder


@pytest.fixture
def study(tmp_path: Path) -> Study:
    a_folder(tmp_path / "photos", train=8, test=4)
    return Study(
        f"folder:{tmp_path / 'photos'}", "vit_tiny_patch16_224", model_args=TINY, split=2, train_images=5, test_images=4
    )


def test_the_images_of_the_studys_sample_are_measured_once_and_kept(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "adc_edge")
    first = beside_of(study, tmp_path / "out")
    assert first.pictures is not None
    assert (first.pictures.train.images, first.pictures.test.images, first.pictures.size) == (5, 4, (16, 16))
    assert first.note == ""
    assert "5 training images, sent once: own files" in caplog.text
    path = tmp_path / "out" / "pictures.json"
    assert json.loads(path.read_text())["train"]["bytes_q90"] == first.pictures.train.bytes_q90
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["pictures.json"]
    before = path.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "photos")  # what is kept needs no data
    assert beside_of(study, tmp_path / "out") == first
    assert path.stat().st_mtime_ns == before


def test_a_study_whose_data_are_gone_has_no_pictures_but_a_note_and_its_trunk(study: Study, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "photos")
    found = beside_of(study, tmp_path / "out", "central")
    assert found.pictures is None
    assert found.note == f"{NO_PICTURES}: folder:{tmp_path / 'photos'} is no directory."
    assert found.trunk is not None
    assert found.evaluation == "central"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 99}', b"\xff"])
def test_a_record_that_cannot_be_read_is_made_again(content: bytes, study: Study, tmp_path: Path) -> None:
    path = tmp_path / "out" / "pictures.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert beside_of(study, path.parent).pictures is not None
    assert json.loads(path.read_text())["format"] == 1


def test_a_record_of_another_version_is_made_again(study: Study, tmp_path: Path) -> None:
    first, path = beside_of(study, tmp_path), tmp_path / "pictures.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    assert beside_of(study, tmp_path) == first


def test_a_model_that_timm_cannot_make_leaves_a_note(study: Study, tmp_path: Path) -> None:
    found = beside_of(msgspec.structs.replace(study, model="vit_of_another_timm"), tmp_path)
    assert (found.pictures, found.trunk) == (None, None)
    assert "nor the bytes of a whole training: timm cannot make 'vit_of_another_timm'" in found.note
