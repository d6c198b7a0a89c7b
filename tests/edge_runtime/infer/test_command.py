"""`adc-edge infer` as users type it."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adc_edge.arrays import Body
from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.inference.answers import HeadInference
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.infer.runner import InferRun
from adc_edge.edge_runtime.infer.settings import STDOUT, InferSettings
from adc_edge.errors import AdcEdgeError, LinkError, ProtocolError, SettingError
from adc_edge.export.merge import merge_runs
from adc_edge.method.ratio import Ratio
from adc_edge.method.split import create_vit
from adc_edge.security.keystore import allow, make_keys, pin
from adc_edge.storage.bundle import HEAD, Bundle
from adc_edge.storage.halves import HalfState
from adc_edge.wire.inference_messages import Infer
from adc_edge.wire.messages import FromDevice, FromTrainer
from tests.inferring import Whole, head_server, pixels_of, write_images
from tests.serving import logged, serving


def run(settings: InferSettings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures and answers of a run."""
    lines: list[str] = []
    figures = InferRun(settings, lines.append).run()
    return figures, [json.loads(line) for line in lines]


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_a_folder_is_judged_by_trunk_and_head_with_names_bytes_and_a_broken_image(
    whole: Whole, head: Server, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", 5)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8")
    settings = InferSettings(
        whole.bundle.path, (tmp_path / "photos",), trainer=head.endpoint, mode="split", output=STDOUT
    )
    figures, answers = run(settings)
    assert len({answer["file"] for answer in answers}) == len(answers) == 6
    (broken,) = (answer for answer in answers if "error" in answer)
    assert broken["file"].endswith("broken.jpg")
    for answer in answers:
        if answer is not broken:
            assert answer["where"] == "split"
            assert answer["class"] == {0: "cat", 1: "dog"}.get(answer["index"], str(answer["index"]))
            assert len(answer["top5"]) == 5
            assert answer["bytes_up"] > 500
    assert (figures["images"], figures["split"], figures["unreadable"], figures["outages"]) == (6, 5, 1, 0)
    assert figures["bytes_up"] > sum(answer.get("bytes_up", 0) for answer in answers)


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"adc": True}, {"ratio": Ratio(xi=0.3), "batch_size": 6}])
def test_batches_and_adc_answer_every_image(
    options: dict[str, Any], whole: Whole, head: Server, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", 9)
    settings = InferSettings(
        whole.bundle.path, (tmp_path / "photos",), trainer=head.endpoint, mode="split", output=STDOUT, **options
    )
    figures, answers = run(settings)
    assert (figures["split"], len({answer["file"] for answer in answers})) == (9, 9)


def test_a_trainer_that_is_away_at_the_start_is_no_obstacle_where_the_whole_model_is_here(
    whole: Whole, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", 2)
    settings = InferSettings(
        whole.bundle.path, (tmp_path / "photos",), trainer=closed_port(), wait_s=0.1, output=STDOUT
    )
    figures, answers = run(settings)
    assert (figures["local"], figures["outages"]) == (2, 0)
    assert {answer["reason"] for answer in answers} == {"the trainer is away"}


def test_an_end_that_is_asked_for_while_the_trainer_is_waited_for_is_no_error(bundle: Bundle, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 2)
    before = b'{"file":"x","modified_ns":1}\n'
    (tmp_path / "out.jsonl").write_bytes(before)
    settings = InferSettings(
        bundle.path, (tmp_path / "photos",), trainer=closed_port(), output=tmp_path / "out.jsonl", fresh=True
    )
    asked = itertools.count()
    stopped = InferRun(settings, print, lambda: next(asked) > 5)
    assert stopped.run()["images"] == 0
    assert not stopped.complete
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_answers_are_not_dropped_for_a_run_that_cannot_work(bundle: Bundle, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 1)
    before = b'{"file":"x","modified_ns":1}\n'
    (tmp_path / "out.jsonl").write_bytes(before)
    settings = InferSettings(
        bundle.path, (tmp_path / "photos",), trainer=closed_port(), wait_s=0.1, output=tmp_path / "out.jsonl",
        fresh=True,
    )  # fmt: skip
    with pytest.raises(LinkError, match="no trainer at"):
        run(settings)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_answers_are_dropped_where_there_is_no_image(whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "out.jsonl").write_bytes(b'{"file":"x","modified_ns":1}\n')
    run(InferSettings(whole.bundle.path, (tmp_path / "photos",), output=tmp_path / "out.jsonl", fresh=True))
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_link_that_breaks_in_the_first_request_is_an_error_with_a_remedy(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    class Busy(HeadInference):
        def answer(self, message: FromDevice, body: memoryview) -> tuple[FromTrainer, Body] | None:
            if isinstance(message, Infer):
                raise ProtocolError("too much", "less", "wait", "busy")
            return super().answer(message, body)

    write_images(tmp_path / "photos", 1)
    with serving(Server(bundle, training, "tcp://127.0.0.1:*", SessionRegistry(tmp_path / "log"))) as server:
        server.inference = Busy(bundle, training, HalfState(bundle.path / HEAD, {}, 0), ())
        with pytest.raises(LinkError, match=r"the link to .* broke \(busy: too much\)"):
            run(InferSettings(bundle.path, (tmp_path / "photos",), trainer=server.endpoint))


def test_a_head_that_has_learned_with_frozen_trunks_serves_a_device_that_did_not_train(
    whole: Whole, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", 3)
    trainer = head_server(whole.bundle, tmp_path / "log", steps=40, frozen=True)
    with serving(trainer) as server, logged("adc_edge.edge_runtime.infer") as lines:
        figures, _ = run(
            InferSettings(whole.bundle.path, (tmp_path / "photos",), trainer=server.endpoint, output=STDOUT)
        )
    assert (figures["split"], figures["local"]) == (3, 0)
    assert "local    model.onnx is not used: it has not learned the trainer's 40 steps" in lines


def test_with_keys_only_a_device_that_is_allowed_is_answered(whole: Whole, tmp_path: Path) -> None:
    trainer, device = make_keys(tmp_path / "trainer"), make_keys(tmp_path / "device")
    allow(tmp_path / "trainer", "device", device.public)
    pin(tmp_path / "device", trainer.public)
    write_images(tmp_path / "photos", 2)
    with serving(head_server(whole.bundle, tmp_path / "log", access=Access(tmp_path / "trainer"))) as server:
        for keys, split in ((tmp_path / "device", 2), (None, 0)):
            settings = InferSettings(
                whole.bundle.path, (tmp_path / "photos",), trainer=server.endpoint, mode="split", keys=keys,
                wait_s=0.1, output=STDOUT,
            )  # fmt: skip
            assert run(settings)[0]["split"] == split


def test_an_output_file_is_continued_by_the_next_start(whole: Whole, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 3)
    out = tmp_path / "out.csv"
    settings = InferSettings(whole.bundle.path, (tmp_path / "photos",), mode="local", output=out)
    assert run(settings)[0]["local"] == 3
    write_images(tmp_path / "photos", 2, 5)
    figures, _ = run(settings)
    assert (figures["local"], figures["answered_before"]) == (2, 3)
    assert len(out.read_text().splitlines()) == 1 + 5
    assert run(settings)[0]["answered_before"] == 5


MISTAKES: tuple[tuple[dict[str, Any], str], ...] = (  # options, and words of the message
    ({}, "no images"),
    ({"images": "{tmp}/none"}, "no such file or folder"),
    ({"watch": "{tmp}/none"}, "no such directory"),
    ({"images": "{tmp}", "watch": "{tmp}"}, "IMAGES and --watch"),
    ({"images": "{tmp}", "mode": "split"}, "--mode split without --trainer"),
    ({"images": "{tmp}", "output": "{tmp}/out.txt"}, "out.txt"),
    ({"images": "{tmp}"}, "no head anywhere: no --trainer, and"),
    ({"images": "{tmp}", "mode": "local"}, "has no model.onnx"),
    ({"images": "{tmp}", "trainer": "tcp://10.0.0.1:5"}, "is not loopback, and there are no keys"),
    ({"images": "{tmp}", "trainer": "{away}", "weights": "{tmp}"}, "is no run directory"),
    ({"images": "{tmp}", "mode": "local", "weights": "{tmp}"}, "has not learned that run"),
    ({"images": "{tmp}", "trainer": "{away}", "wait_s": 0.1}, "no trainer at"),
    ({"images": "{tmp}", "trainer": "{trains}"}, "does not answer inference"),
    ({"images": "{tmp}", "trainer": "{other}"}, "has bundle"),
    ({"images": "{tmp}", "trainer": "{away}", "ratio": Ratio(batch=0.5)}, "--token-ratio"),
    ({"images": "{tmp}", "trainer": "{away}", "compute": "int8"}, "calibrat"),
)


@pytest.mark.parametrize(("options", "words"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_is_told_before_the_first_image(
    options: dict[str, Any], words: str, bundle: Bundle, server: Server, head: Server, tmp_path: Path
) -> None:
    write_images(tmp_path, 1)
    places = {"tmp": tmp_path, "away": closed_port(), "trains": server.endpoint, "other": head.endpoint}
    values: dict[str, Any] = {name: v.format(**places) if isinstance(v, str) else v for name, v in options.items()}
    for name in ("watch", "output", "weights"):
        if name in values:
            values[name] = Path(values[name])
    if "images" in values:
        values["images"] = (Path(values["images"]),)
    with pytest.raises(AdcEdgeError) as told:
        run(InferSettings(bundle.path, **values))
    assert words in str(told.value)
    assert isinstance(told.value, LinkError) or told.value.exit_code in (1, 2)
    assert told.value.remedy


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "adc_edge", "infer", *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_answers_have_standard_output_for_themselves_and_a_broken_image_is_exit_code_1(
    whole: Whole, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", 2)
    (tmp_path / "photos" / "x.png").touch()
    words = ("--bundle", whole.bundle.path, "--local", tmp_path / "photos", "-o", "-", "--report", tmp_path / "r.json")
    one, two = start(*words), start(*words[:-2], "--allow-broken")
    out, err = one.communicate(timeout=60)
    assert one.returncode == 1, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer.get("error", "") for answer in answers] == ["", "", "empty file"]
    assert "3 images: 0 split, 2 local, 1 unreadable; latency p50" in err
    assert "place    local" in err
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 3
    two.communicate(timeout=60)
    assert two.returncode == 0


@pytest.mark.slow
def test_a_watched_directory_is_answered_once_over_restarts_and_ends_with_0(
    whole: Whole, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    camera, out = tmp_path / "camera", tmp_path / "out.jsonl"
    write_images(camera, 3)
    for number, end in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGTERM)):
        process = start("--bundle", whole.bundle.path, "--local", "--watch", camera, "-o", out)
        eventually(lambda count=3 + 2 * number: out.exists() and out.read_text().count("\n") == count)
        write_images(camera, 1, 10 + 2 * number)
        eventually(lambda count=4 + 2 * number: out.read_text().count("\n") == count)
        process.send_signal(end)
        process.communicate(timeout=30)
        assert process.returncode == (-signal.SIGKILL if end == signal.SIGKILL else 0)
        write_images(camera, 1, 11 + 2 * number)  # while nobody watches
    files = [json.loads(line)["file"] for line in out.read_text().splitlines()]
    assert len(set(files)) == len(files) == 8


@pytest.mark.slow
def test_a_watched_camera_that_has_a_broken_image_ends_with_0(
    whole: Whole, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    write_images(tmp_path / "camera", 1)
    (tmp_path / "camera" / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out.jsonl"
    process = start("--bundle", whole.bundle.path, "--local", "--watch", tmp_path / "camera", "-o", out)
    eventually(lambda: out.exists() and out.read_text().count("\n") == 2)
    second = start("--bundle", whole.bundle.path, "--local", tmp_path / "camera", "-o", out)
    _, told = second.communicate(timeout=60)
    assert (second.returncode, "is in use by another process" in told) == (2, True)
    process.send_signal(signal.SIGINT)
    told, trouble = process.communicate(timeout=30)
    assert process.returncode == 0, trouble
    assert "2 images: 0 split, 1 local, 1 unreadable" in told


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_while_the_trainer_is_waited_for_ends_without_a_traceback(
    number: signal.Signals, code: int, bundle: Bundle, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", 1)
    process = start("--bundle", bundle.path, "--trainer", closed_port(), tmp_path / "photos")
    assert process.stderr is not None
    told = ""
    while "waiting for the trainer" not in told and (line := process.stderr.readline()):
        told += line
    process.send_signal(number)
    told += process.communicate(timeout=60)[1]
    assert process.returncode == code, told
    assert "Traceback" not in told


@pytest.mark.slow
def test_infer_runs_without_torch(whole: Whole, head: Server, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 2)
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'torchvision'): sys.modules[name] = None\n"
        "from adc_edge.cli import main\n"
        f"main(['infer', '--bundle', {str(whole.bundle.path)!r}, '--trainer', {head.endpoint!r}, '--mode', 'split', "
        f"{str(tmp_path / 'photos')!r}, '-o', '-'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["where"] for line in done.stdout.splitlines()} == {"split"}


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("trunk", ["train", "frozen"])
def test_the_halves_of_a_run_answer_as_the_merged_model(
    trunk: str, bundle_dir: Path, tmp_path: Path, command: Any, eventually: Callable[..., None]
) -> None:
    cloud, edge, endpoint = tmp_path / "cloud", tmp_path / "edge", closed_port()
    trainer = ("trainer", "--bundle", bundle_dir, "--bind", endpoint, "--run", cloud)
    mode = "frozen" if trunk == "frozen" else "parallel"
    with command(*trainer, "--devices", "1", "--mode", mode) as training:
        words = ("--trainer", endpoint, "--steps", "3", "--run", edge, "--trunk", trunk, "--eval-images", "16")
        with command("serve", "--bundle", bundle_dir, *words) as serve:
            assert serve.finish()[0] == 0
        assert training.finish()[0] == 0
    paths = write_images(tmp_path / "photos", 6)
    images = InferSettings(
        bundle_dir, (tmp_path / "photos",), trainer=endpoint, precision="fp32", output=STDOUT, wait_s=60
    )
    with command(*trainer, "--serve-only") as serving_head:
        _, answers = run(msgspec.structs.replace(images, weights=edge))
        if trunk == "frozen":  # a device that did not train
            assert [answer["top5"] for answer in run(images)[1]] == [answer["top5"] for answer in answers]
        else:
            with pytest.raises(AdcEdgeError, match="the bundle's trunk, and this head has learned 3 steps"):
                run(images)
        serving_head.process.terminate()
        code, said = serving_head.finish()
    assert code == 0, said
    assert "it answers inference and does not learn" in said
    merged = merge_runs(edge, cloud, tmp_path / "m.safetensors").manifest
    vit = create_vit(merged.model, merged.model_args, merged.classes).eval()
    vit.load_state_dict(load_file(tmp_path / "m.safetensors"))
    pixels = pixels_of(paths, merged.preprocessing)
    with torch.no_grad():
        expected = vit(torch.from_numpy(pixels)).softmax(1).numpy()
    assert [answer["index"] for answer in answers] == expected.argmax(1).tolist()
    np.testing.assert_allclose([answer["probability"] for answer in answers], expected.max(1), atol=1e-5)
    assert {answer["class"] for answer in answers} <= set("0123456789")


def test_settings_name_what_can_be_chosen(whole: Whole) -> None:
    with pytest.raises(SettingError, match="no head anywhere"):
        InferSettings(whole.bundle.path, weights=Path("x")).places(whole.bundle, learned=True)
    assert InferSettings(whole.bundle.path, trainer="tcp://127.0.0.1:1").places(whole.bundle, False) == (True, True)
