"""The link fails: images are judged here within the deadline, and by the trainer again once it is back; each once."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.infer.places import MOST_DEADLINE_S, default_deadline
from adc_edge.edge_runtime.infer.runner import InferRun
from adc_edge.edge_runtime.infer.settings import InferSettings
from adc_edge.edge_runtime.infer.summary import summary_text
from adc_edge.planning.place import SplitCosts
from adc_edge.wire.addresses import parse_address
from tests.chaos.proxy import BadLink
from tests.inferring import Device, Whole, head_server, pixels_of, write_images
from tests.serving import serving

COSTS = SplitCosts(0.01, 0.01, 0.0, 0.0, 0.0)


@pytest.fixture
def bad_link(head: Server) -> Iterator[BadLink]:
    with BadLink(parse_address(head.endpoint).port, random.Random(0)) as link:
        yield link


def until(device: Device, whole: Whole, where: str, seconds: float = 60.0) -> float:
    """Judge images until one is judged at a place, within ``seconds``; return the seconds that it took."""
    start, images = time.monotonic(), whole.images(1)
    while (found := device.places.judge(images)).where != where:
        assert time.monotonic() - start < seconds, f"still {found.where} ({found.reason})"
        time.sleep(0.01)
    np.testing.assert_allclose(found.logits, whole.logits(images), atol=1e-5, rtol=0)
    return time.monotonic() - start


def test_a_cut_is_noticed_at_once_and_the_link_comes_back(
    whole: Whole, bad_link: BadLink, device: Callable[..., Device]
) -> None:
    edge = device(bad_link.endpoint)
    edge.places.begin(whole.images(1), COSTS, 1.0)
    assert edge.places.judge(whole.images(1)).where == "split"
    bad_link.cut()
    until(edge, whole, "local")
    until(edge, whole, "split")
    assert edge.places.outages >= 1


def test_a_lost_link_costs_no_second_pass_of_the_trunk_before_the_local_answer(
    whole: Whole, bad_link: BadLink, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    edge = device(bad_link.endpoint)
    assert edge.split is not None
    edge.places.begin(whole.images(1), COSTS, 1.0)
    passes, request = list[int](), edge.split.request
    edge.split.request = lambda images: passes.append(len(images)) or request(images)  # type: ignore[func-returns-value,method-assign]
    bad_link.cut()
    eventually(lambda: bad_link.cuts == 1)
    assert edge.places.judge(whole.images(1)).where == "local"
    assert passes == [1]


@pytest.mark.slow
@pytest.mark.timed
def test_a_link_that_goes_silent_costs_two_seconds_at_most_each_way(
    whole: Whole, bad_link: BadLink, device: Callable[..., Device]
) -> None:
    edge = device(bad_link.endpoint)
    edge.places.begin(whole.images(1), COSTS, 1.0)
    for seconds in (1.5, 4.0, 9.5):  # the last one is longer than heartbeats bear
        until(edge, whole, "split", 2.0)
        bad_link.stall(seconds)
        start = time.monotonic()
        lost = until(edge, whole, "local", 2.0)
        while time.monotonic() < start + seconds:
            assert edge.places.judge(whole.images(1)).where == "local"
            time.sleep(0.02)
        back = until(edge, whole, "split", 2.0)
        print(f"silent for {seconds} s: local after {lost:.2f} s, split {back:.2f} s after the return")


@pytest.mark.slow
def test_a_trainer_that_starts_again_is_used_again(whole: Whole, device: Callable[..., Device], tmp_path: Path) -> None:
    first = head_server(whole.bundle, tmp_path / "a")
    with serving(first):
        edge = device(first.endpoint)
        edge.places.begin(whole.images(1), COSTS, 1.0)
        until(edge, whole, "split")
    until(edge, whole, "local")
    time.sleep(1.0)
    with serving(head_server(whole.bundle, tmp_path / "b", first.endpoint)):
        until(edge, whole, "split")
        edge.link.close()  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_thousand_images_with_ten_cuts_get_one_answer_each(whole: Whole, bad_link: BadLink, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 1000)
    out = tmp_path / "answers.jsonl"
    settings = InferSettings(
        whole.bundle.path, (tmp_path / "images",), trainer=bad_link.endpoint, mode="split", precision="fp32", output=out
    )
    over = threading.Event()
    run = InferRun(settings, print, lambda: over.wait(0.005))  # at a camera's pace

    def cut() -> None:
        for number in range(10):
            while not over.is_set() and (not out.exists() or out.read_bytes().count(b"\n") < 90 * number + 20):
                time.sleep(0.002)
            bad_link.cut()
            if number % 2:
                bad_link.stall(0.4)

    cutter = threading.Thread(target=cut)
    cutter.start()
    figures = run.run()
    over.set()
    cutter.join()
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    print(summary_text(figures), f"; {bad_link.cuts} cuts")
    assert [answer["file"] for answer in answers] == [str(path) for path in paths]
    assert bad_link.cuts == 10
    assert figures["outages"] >= 10
    assert figures["split"] > 0 < figures["local"]
    assert figures["split"] + figures["local"] == 1000
    images = pixels_of(paths, whole.bundle.manifest.preprocessing)
    assert [answer["index"] for answer in answers] == whole.logits(images).argmax(1).tolist()


def test_without_a_whole_model_an_image_waits_for_the_trainer(
    whole: Whole, bad_link: BadLink, device: Callable[..., Device]
) -> None:
    edge = device(bad_link.endpoint, local=False)
    edge.places.begin(whole.images(1), COSTS, None)
    bad_link.cut()
    for seed in range(3):
        images = whole.images(1, seed)
        found = edge.places.judge(images)
        assert found.where == "split"
        np.testing.assert_allclose(found.logits, whole.logits(images), atol=1e-5, rtol=0)


def test_a_late_answer_is_given_to_nobody(whole: Whole, bad_link: BadLink, device: Callable[..., Device]) -> None:
    edge = device(bad_link.endpoint, deadline_s=0.3)
    edge.places.begin(whole.images(1), COSTS, 1.0)
    until(edge, whole, "split")
    bad_link.stall(3600.0)
    until(edge, whole, "local")
    bad_link.stall(0.0)  # the answer comes now, while other images are asked for
    for seed in range(20):
        images = whole.images(1, seed)
        np.testing.assert_allclose(edge.places.judge(images).logits, whole.logits(images), atol=1e-5, rtol=0)
        time.sleep(0.03)
    until(edge, whole, "split")


def test_a_link_that_gets_slower_than_the_device_is_left(
    whole: Whole, head: Server, device: Callable[..., Device]
) -> None:
    with BadLink(parse_address(head.endpoint).port, random.Random(0), delay_ms=30) as slow:
        edge = device(slow.endpoint, mode="auto", deadline_s=60.0)
        edge.places.begin(whole.images(1), COSTS, 0.5)
        assert edge.places.judge(whole.images(1)).where == "split"
        edge.places._local_s.clear()
        edge.places._local_s.add(1, 0.01)
        until(edge, whole, "local")
        assert edge.places.outages == 0


def test_a_link_that_was_slower_than_the_device_is_taken_once_it_is_faster(
    whole: Whole, head: Server, device: Callable[..., Device]
) -> None:
    edge = device(head.endpoint, mode="auto", deadline_s=60.0)
    edge.places.begin(whole.images(1), SplitCosts(900.0, 0.0, 0.0, 0.0, 0.0), 600.0)
    until(edge, whole, "split")


def test_batches_of_another_size_do_not_make_a_link_slow(
    whole: Whole, head: Server, device: Callable[..., Device]
) -> None:
    with BadLink(parse_address(head.endpoint).port, random.Random(0), delay_ms=20) as slow:
        edge = device(slow.endpoint, mode="auto", deadline_s=60.0)
        edge.places.begin(whole.images(4), COSTS, 600.0)
        for number in range(9):
            assert edge.places.judge(whole.images(4)).where == "split"
            if number < 8:  # not enough of them to leave the link
                assert edge.places.judge(whole.images(1)).where == "split"
        edge.places._local_s.add(1, 0.01)
        assert edge.places.judge(whole.images(4)).where == "split"
        until(edge, whole, "local")


def test_the_device_is_measured_for_a_size_of_batches_that_it_has_not_judged(
    whole: Whole, head: Server, device: Callable[..., Device]
) -> None:
    with BadLink(parse_address(head.endpoint).port, random.Random(0), delay_ms=25) as slow:
        edge = device(slow.endpoint, mode="auto", deadline_s=60.0)
        edge.places.begin(whole.images(4), COSTS, 600.0)
        until(edge, whole, "local")
        assert edge.places.outages == 0


def test_the_deadline_of_a_large_batch_is_not_that_of_small_ones(
    whole: Whole, head: Server, device: Callable[..., Device]
) -> None:
    edge = device(head.endpoint)
    assert edge.link is not None
    ask = edge.link.ask
    edge.link.ask = lambda request, deadline_s: ask(request, 60.0)  # type: ignore[method-assign]
    edge.places.begin(whole.images(4), SplitCosts(0.4, 0.0, 0.0, 0.0, 0.0), 1.0)
    large_s = edge.places.deadline_s(4)
    assert edge.places.deadline_s(1) == large_s == default_deadline(0.4)
    for _ in range(9):
        assert edge.places.judge(whole.images(1)).where == "split"
    assert edge.places.deadline_s(4) == large_s


def test_a_link_that_is_back_but_slower_is_no_reason_any_more(
    whole: Whole, head: Server, device: Callable[..., Device], eventually: Callable[..., None]
) -> None:
    with BadLink(parse_address(head.endpoint).port, random.Random(0), delay_ms=10) as slow:
        edge = device(slow.endpoint, mode="auto", deadline_s=60.0)
        edge.places.begin(whole.images(1), None, 1e-4)
        eventually(lambda: not edge.places.judge(whole.images(1)).reason)
        assert edge.places.judge(whole.images(1)).where == "local"
        assert edge.places.outages == 0  # it was never used


def test_a_trainer_that_refuses_after_an_outage_is_the_reason_and_names_no_classes(
    whole: Whole, device: Callable[..., Device], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    first = head_server(whole.bundle, tmp_path / "a", names=["cat", "dog"])
    with serving(first):
        edge = device(first.endpoint)
        edge.places.begin(whole.images(1), COSTS, 1.0)
        until(edge, whole, "split")
    until(edge, whole, "local")
    assert edge.link is not None
    assert edge.link.names == ["cat", "dog"]
    with serving(head_server(whole.bundle, tmp_path / "b", first.endpoint, ["lion", "wolf"], steps=40)):
        eventually(lambda: "learned 40 steps" in edge.places.judge(whole.images(1)).reason)
        assert edge.link.names == ["cat", "dog"]
    with serving(head_server(whole.bundle, tmp_path / "c", first.endpoint, ["lion", "wolf"])):
        until(edge, whole, "split")
        assert edge.link.names == ["lion", "wolf"]
        edge.link.close()


def test_a_head_that_has_learned_more_than_the_whole_model_here_does_not_judge_beside_it(
    whole: Whole, device: Callable[..., Device], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with serving(head_server(whole.bundle, tmp_path / "a", steps=40, frozen=True)) as server:
        edge = device(server.endpoint)
        assert edge.link is not None
        edge.link.beside_whole = True
        edge.places.begin(whole.images(1), None, 1.0)
        eventually(lambda: "has learned 40 steps" in edge.places.judge(whole.images(1)).reason)
        assert edge.places.judge(whole.images(1)).where == "local"


def test_the_default_deadline_follows_the_usual_latency_within_two_seconds() -> None:
    assert default_deadline(0.001) == 0.25
    assert default_deadline(0.2) == pytest.approx(0.7)
    assert default_deadline(5.0) == MOST_DEADLINE_S < 2.0
