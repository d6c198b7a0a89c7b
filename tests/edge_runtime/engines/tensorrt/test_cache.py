"""Engines on disk: what is kept is found again; what is damaged, or another's, is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from adc_edge.edge_runtime.engines.tensorrt import cache
from adc_edge.edge_runtime.engines.tensorrt.cache import EngineKey, Kept
from adc_edge.edge_runtime.engines.tensorrt.cuda import Device
from adc_edge.errors import EngineError, SettingError

KEY = EngineKey("ab" * 32, "10.3.0", "Orin", "8.7", '{"way":"refit"}')
ENGINE = bytes(range(256)) * 5


def other(**changes: str) -> EngineKey:
    return msgspec.structs.replace(KEY, **changes)


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    directory = tmp_path / "engines"
    assert cache.load_engine(directory, KEY) is None
    path = cache.store_engine(directory, KEY, ENGINE)
    assert path.name.startswith("Orin-sm8-7-trt10.3.0-")
    assert cache.load_engine(directory, KEY) == Kept(ENGINE, cache.GOOD)
    cache.store_engine(directory, KEY, b"", "it forgets biases")
    assert cache.load_engine(directory, KEY) == Kept(b"", "it forgets biases")
    assert [p.name for p in directory.iterdir()] == [path.name]


def test_every_part_of_the_key_names_another_file(tmp_path: Path) -> None:
    cache.store_engine(tmp_path, KEY, ENGINE)
    keys = [
        other(onnx="cd" * 32),
        other(tensorrt="10.16.1.11"),
        other(gpu="Xavier"),
        other(capability="7.2"),
        other(build='{"way":"inputs"}'),
    ]
    assert len({key.stem for key in [KEY, *keys]}) == 6
    for key in keys:
        assert cache.load_engine(tmp_path, key) is None
    assert other(gpu="NVIDIA GeForce RTX 4090/Ti").stem.startswith("NVIDIA-GeForce-RTX-4090-Ti-sm8-7-")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensorrt": "8.5.2"}, "TensorRT 8.5.2, not 10.3.0"),
        ({"gpu": "Xavier", "capability": "7.2"}, "the GPU Xavier, not Orin, compute capability 7.2, not 8.7"),
        ({"onnx": "cd" * 32}, f"the graph with SHA-256 {'cd' * 32}"),
        ({"build": "{}"}, "the options {}"),
    ],
)
def test_an_engine_under_another_ones_name_is_refused(changes: dict[str, str], words: str, tmp_path: Path) -> None:
    wrong = cache.store_engine(tmp_path, other(**changes), ENGINE)
    wrong.rename(tmp_path / f"{KEY.stem}.engine")
    with pytest.raises(EngineError) as caught:
        cache.load_engine(tmp_path, KEY)
    assert words in str(caught.value)
    assert f"delete {tmp_path / KEY.stem}.engine; it will be built again" in str(caught.value)


@pytest.mark.parametrize("length", [0, 5, 18, 20, 40, 300, -1, -600])
def test_a_truncated_engine_is_refused(length: int, tmp_path: Path) -> None:
    path = cache.store_engine(tmp_path, KEY, ENGINE)
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with pytest.raises(EngineError, match=r"is damaged(.|\n)*it will be built again"):
        cache.load_engine(tmp_path, KEY)
    path.write_bytes(content + b"x")
    with pytest.raises(EngineError, match="is damaged"):
        cache.load_engine(tmp_path, KEY)


def test_no_flipped_bit_is_overlooked(tmp_path: Path) -> None:
    path = cache.store_engine(tmp_path, KEY, ENGINE[:40])
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(EngineError):
            cache.load_engine(tmp_path, KEY)


def test_a_header_cannot_ask_for_much(tmp_path: Path) -> None:
    path = tmp_path / f"{KEY.stem}.engine"
    path.write_bytes(b"adc-edge engine 1\n" + b"\xff" * 4 + b"[" * 100_000)
    with pytest.raises(EngineError, match="it has no header"):
        cache.load_engine(tmp_path, KEY)


def test_a_note_names_the_boards_whose_engines_lie_there(tmp_path: Path) -> None:
    assert cache.foreign(tmp_path / "absent", Device("Orin", "8.7")) is None
    cache.store_engine(tmp_path, other(gpu="Xavier", capability="7.2"), ENGINE)
    cache.store_engine(tmp_path, other(gpu="Thor", capability="11.0"), ENGINE)
    (tmp_path / "broken.engine").write_bytes(b"adc-edge engine 1\n\x02\x00\x00\x00{]")
    note = cache.foreign(tmp_path, Device("Orin", "8.7"))
    assert note == (f"{tmp_path} holds engines of Thor (11.0), Xavier (7.2); building one for this GPU, Orin (8.7)")
    cache.store_engine(tmp_path, KEY, ENGINE)
    assert cache.foreign(tmp_path, Device("Orin", "8.7")) is None


def test_the_timing_cache_belongs_to_tensorrt_and_gpu_and_may_be_lost(tmp_path: Path) -> None:
    assert cache.load_timing(tmp_path, KEY) == b""
    cache.store_timing(tmp_path, KEY, b"times")
    assert cache.load_timing(tmp_path, other(onnx="cd" * 32, build="{}")) == b"times"
    for key in (other(tensorrt="10.16.1.11"), other(gpu="Xavier"), other(capability="7.2")):
        assert cache.load_timing(tmp_path, key) == b""
    (path,) = tmp_path.glob("*.timing")
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.load_timing(tmp_path, KEY) == b""


def test_a_directory_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.check_writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"Not a directory(.|\n)*--engine-cache DIR"):
        cache.check_writable(tmp_path / "file" / "engines")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SettingError, match=r"read-only(.|\n)*--engine-cache DIR"):
        cache.check_writable(tmp_path)
