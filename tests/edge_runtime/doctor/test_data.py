"""`doctor --data`: whether this device can read its images, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from adc_edge.edge_runtime.doctor.data import examine_data
from adc_edge.edge_runtime.doctor.report import DoctorRow


def rows(source: str, bundle: Path | None = None, thorough: bool = True) -> dict[str, DoctorRow]:
    return {row.name: row for row in examine_data(source, bundle, thorough)}


def folder(path: Path, broken: int = 0) -> str:
    """Two classes of 20 images, some of them broken."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (path / split / name).mkdir(parents=True)
            for number in range(20):
                file = path / split / name / f"{number}.png"
                Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file)
                if number < broken:
                    file.write_bytes(b"no image")
    return f"folder:{path}"


def test_a_readable_source_is_told_by_its_images_and_classes(tmp_path: Path) -> None:
    found = rows(folder(tmp_path / "photos"))
    first, classes = found.values()
    assert (first.kind, first.text) == ("ok", "40 train, 40 test images, 2 classes")
    assert (classes.kind, classes.text) == ("ok", "2: cat, dog")


def test_a_few_broken_images_are_a_warning_and_many_a_fault(tmp_path: Path) -> None:
    few = next(iter(rows(folder(tmp_path / "few", broken=1)).values()))
    assert (few.kind, few.fault) == ("warning", False)
    assert "unreadable (first: " in few.text
    many = next(iter(rows(folder(tmp_path / "many", broken=10)).values()))
    assert many.fault
    assert "images are unreadable" in many.text
    assert next(iter(rows(f"folder:{tmp_path / 'many'}", thorough=False).values())).kind == "ok"  # --health opens none


def test_a_source_that_is_not_there_is_named_in_one_line(tmp_path: Path) -> None:
    for source in (f"folder:{tmp_path / 'none'}", f"npz:{tmp_path / 'none.npz'}", "imagenet", "no_such_module:make"):
        (row,) = rows(source).values()
        assert row.fault
        assert "\n" not in row.text
        assert row.remedy


def test_classes_that_the_bundle_has_no_room_for_are_a_fault(tmp_path: Path, bundle_dir: Path) -> None:
    names = [f"class {n}" for n in range(11)]
    images, labels = np.zeros((11, 8, 8), np.uint8), np.arange(11)
    file = tmp_path / "eleven.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels, classes=names)
    assert rows(f"npz:{file}")["classes"].kind == "ok"
    fault = rows(f"npz:{file}", bundle_dir)["classes"]
    assert fault.fault
    assert "--num-classes 11" in (fault.remedy or "")
    assert not any(row.fault for row in rows("digits", bundle_dir).values())


def test_data_are_examined_without_torch() -> None:
    code = (
        "import sys; from adc_edge.edge_runtime.doctor.examine import examine\n"
        "report = examine(data='digits', golden=False)\n"
        "assert [row.text for row in report.rows if row.name == 'digits'], report\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
