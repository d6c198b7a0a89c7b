"""The simulation of fleets: closed forms, every message once, the same numbers for the same seed, and its page."""

from __future__ import annotations

import math
from itertools import cycle, pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest
import scale
import scale_answers
import scale_docs
import scale_gloo
import scale_ranks
import scale_runs
import scale_stated
import scale_work
from fleet_recording import Model
from scale_check import Agreement, agreement
from scale_fleet import DeviceWork, Draw, Link, Outcome, RankWork, RoundWork, simulate
from scale_values import Series, quantile

from adc_edge.cloud_trainer.ranks import server
from adc_edge.cloud_trainer.ranks.learning.rows import RankRow
from adc_edge.defaults import CHECKPOINT_EVERY
from adc_edge.errors import SettingError
from adc_edge.planning.profile import Line
from adc_edge.planning.schedule import Costs, step_seconds

FREE = Link(0.0, 0.0)


def rank(seconds: float, after: float = 0.0, most: int = 1) -> RankWork:
    return RankWork(lambda messages: {"head": messages * seconds}, lambda messages: {"update": after}, most)


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
@pytest.mark.parametrize("window", [0, 1, 2])
def test_a_lone_device_takes_what_the_model_of_a_step_predicts(micro_batches: int, window: int) -> None:
    costs = Costs(forward=0.03, recompute=0.02, backward=0.05, up=0.04, cloud=0.06, down=0.03)
    device = DeviceWork(costs.forward, costs.recompute, costs.backward, 0.0, micro_batches, window)
    done = simulate([(device, Link(costs.up, costs.down, lambda: 0.02))], [rank(costs.cloud)], 3.0)
    expected = step_seconds(costs, 0.04, micro_batches, window)
    assert done.ends[0][0] == pytest.approx(expected)
    assert done.latencies() == pytest.approx([expected] * len(done.latencies()))


def test_devices_of_a_busy_trainer_wait_for_all_others() -> None:
    """N devices with Z seconds between answer and message, at a server of S: a step takes N S once that is above Z."""
    for count, expected in ((1, 0.35), (4, 0.35), (10, 0.5), (40, 2.0)):
        done = simulate([(DeviceWork(0.3), FREE)] * count, [rank(0.03, 0.02)], 60.0)
        if count == 4:  # the four begin at once, and are served one after another ever since
            assert done.rate(10.0) == pytest.approx(4 / 0.33, rel=0.02)
            continue
        wanted = expected if count > 1 else 0.33  # what follows the answer overlaps with the device's own time
        assert quantile(done.latencies(10.0), 0.5) == pytest.approx(wanted, rel=0.02)
        assert done.rate(10.0) == pytest.approx(count / wanted, rel=0.03)


def repair_rate(count: int, think_s: float, service_s: float) -> float:
    """Steps a second of the machine-repair model: exponential times, one server, ``count`` customers."""
    ratio = service_s / think_s
    terms = [math.factorial(count) / math.factorial(count - k) * ratio**k for k in range(count + 1)]
    return (1 - 1 / sum(terms)) / service_s


def test_with_exponential_times_the_rate_is_that_of_the_machine_repair_model() -> None:
    random, count, think_s, service_s = Random(5), 6, 0.3, 0.1
    server = RankWork(lambda messages: {"head": random.expovariate(1 / service_s)}, lambda messages: {})
    devices = [(DeviceWork(0.0), Link(0.0, 0.0, exponential_way(random, think_s))) for _ in range(count)]
    done = simulate(devices, [server], 2500.0)
    assert done.rate(10.0) == pytest.approx(repair_rate(count, think_s, service_s), rel=0.03)


def exponential_way(random: Random, mean_s: float) -> Draw:
    """An exponential time on the way up and none on the way down: a device's time between answer and message."""
    means = cycle((mean_s, 0.0))
    return lambda: random.expovariate(1.0) * next(means)


def random_fleet(seed: int, ranks: int = 3, rounds: RoundWork | None = None) -> Outcome:
    random = Random(seed)
    devices = [
        (
            DeviceWork(0.1 + 0.1 * random.random(), 0.02, 0.03, 0.01, 1 + n % 3),
            Link(0.01, 0.02, lambda: random.random() / 50),
        )
        for n in range(12)
    ]
    server = RankWork(lambda m: {"head": 0.02 * m * random.random()}, lambda m: {"update": 0.002}, 4, lambda: 0.05, 20)
    return simulate(devices, [server] * ranks, 8.0, rounds=rounds, starts=[0.1 * n for n in range(12)])


ROUNDS = RoundWork(lambda messages: {"small collectives": 0.001}, lambda: {"all_reduce": 0.004})


@pytest.mark.parametrize("rounds", [None, ROUNDS, ROUNDS._replace(sync=8)])
def test_every_message_is_answered_once(rounds: RoundWork | None) -> None:
    done = random_fleet(1, rounds=rounds)
    sent = {(n, step, m) for n, ends in enumerate(done.ends) for step in range(len(ends)) for m in range(1 + n % 3)}
    assert set(done.answered) == sent
    assert set(done.answered.values()) == {1}
    assert all(ends == sorted(ends) and len(ends) > 5 for ends in done.ends)


def test_a_seed_fixes_every_time() -> None:
    assert random_fleet(1, rounds=ROUNDS) == random_fleet(1, rounds=ROUNDS)
    assert random_fleet(1).ends != random_fleet(2).ends


def test_ranks_in_lockstep_are_as_fast_as_the_slowest_and_their_round() -> None:
    own = [rank(0.05, 0.01), rank(0.03, 0.01), rank(0.02, 0.01)]
    done = simulate([(DeviceWork(0.001), FREE)] * 30, own, 20.0, rounds=ROUNDS)
    assert done.rate(2.0) == pytest.approx(3 / (0.05 + 0.005 + 0.01), rel=0.02)
    assert done.spent[2]["other ranks"] == pytest.approx(done.spent[2]["head"] * 1.5, rel=0.05)
    apart = simulate([(DeviceWork(0.001), FREE)] * 30, own, 20.0)
    assert apart.rate(2.0) == pytest.approx(1 / 0.06 + 1 / 0.04 + 1 / 0.03, rel=0.02)


def test_with_local_steps_a_busy_rank_joins_a_round_each_k_steps() -> None:
    for sync in (1, 10):
        done = simulate([(DeviceWork(0.001), FREE)] * 8, [rank(0.02)] * 2, 10.0, rounds=ROUNDS._replace(sync=sync))
        assert done.rate(1.0) == pytest.approx(2 * sync / (sync * 0.02 + 0.005), rel=0.02)
        averages = done.spent[0]["all_reduce"] / 0.004
        assert averages == pytest.approx(done.seconds / (sync * 0.02 + 0.005), rel=0.02)
        assert done.spent[0]["small collectives"] == pytest.approx(0.001 * averages, rel=0.03)


def test_with_local_steps_a_slow_rank_joins_a_round_after_half_a_second_and_averages_after_k_steps_of_either() -> None:
    devices = [(DeviceWork(0.001), FREE)] * 8
    done = simulate(devices, [rank(0.2), rank(0.02)], 30.0, rounds=ROUNDS._replace(sync=100))
    # The slow one joins after 3 steps. The quick one does 26 in half a second, or 22 up to the hundredth, and waits.
    rounds, averages = done.spent[0]["small collectives"] / 0.001, done.spent[0]["all_reduce"] / 0.004
    assert rounds == pytest.approx(done.seconds / 0.601, rel=0.03)
    assert averages == pytest.approx(rounds / 4, abs=2)
    assert done.spent[1]["other ranks"] == pytest.approx(averages * (3 * (0.6 - 26 * 0.02) + 0.6 - 22 * 0.02), rel=0.1)


def test_with_local_steps_a_rank_without_messages_joins_at_once() -> None:
    devices = [(DeviceWork(100.0), FREE), (DeviceWork(0.001), FREE)]
    rounds = ROUNDS._replace(sync=4)
    done = simulate(devices, [rank(0.02)] * 2, 5.0, rounds=rounds, starts=[0.0, 1.0])
    assert len(done.ends[1]) == pytest.approx(4.0 / (0.021 + 0.005 / 4), rel=0.05)


def test_the_simulations_waits_are_those_of_the_ranks() -> None:
    assert (scale_ranks.ALONE_S, scale_ranks.SLICE_S) == (server._ALONE_S, server._SLICE_S)


def test_a_round_has_the_collectives_of_the_code() -> None:
    """A table of rows; where ranks other than the first have lines: all of them, padded to the longest."""
    world, ring = calibrated(), calibrated().ring
    work, fields = world.rounds(4), len(RankRow._fields)
    table = ring.all_reduce(4, 8 * fields * 4)
    assert work.told([0, 0, 0, 0])["small collectives"] == pytest.approx(table)
    assert work.told([7, 0, 0, 0])["small collectives"] == pytest.approx(table), "the first rank writes its own lines"
    told = work.told([7, 1, 3, 0])
    padded = ring.all_gather(4, 4 * 3 * scale_answers._LINE_BYTES)
    assert told["small collectives"] == pytest.approx(table + padded)
    assert told["record"] == pytest.approx(4 * world.work.files.metric)
    parameters = world.speeds.parameter_bytes
    assert work.sent([0] * 4, True) - work.sent([0] * 4, False) == pytest.approx(1.5 * parameters)
    assert work.sent([7, 1, 3, 0], False) - work.sent([0] * 4, False) == 3 * 3 * scale_answers._LINE_BYTES


def test_the_links_of_a_board_are_tried_with_the_same_numbers_of_ranks() -> None:
    one, other = scale_answers.grid(48, 1000), scale_answers.grid(53, 1000)
    assert one[-len(other) :] == other
    assert one[-1] == 1000
    assert all(a < b <= math.ceil(1.2 * a) for a, b in pairwise(one))
    assert scale_answers.grid(1, 1) == [1]


def test_an_idle_rank_holds_up_the_others_no_longer_than_it_waits() -> None:
    idle = [(DeviceWork(1000.0), FREE), (DeviceWork(0.001), FREE)]
    done = simulate(idle, [rank(0.05)] * 2, 5.0, rounds=ROUNDS._replace(wait_s=0.02))
    assert done.latencies()[5] == pytest.approx(0.05 + 0.005, rel=0.1)


def test_merged_passes_take_what_waits() -> None:
    passes = RankWork(lambda messages: {"head": 0.1 + 0.001 * messages}, lambda messages: {}, 16)
    done = simulate([(DeviceWork(0.0001), FREE)] * 8, [passes], 20.0)
    assert done.rate(2.0) == pytest.approx(8 / 0.108, rel=0.1)
    assert done.passes < sum(done.answered.values()) / 6


def test_a_series_is_played_in_its_order() -> None:
    values = [0.1, 0.2, 0.3, 0.4]
    play = Series(values, Random(3))
    first = [play() for _ in range(8)]
    assert first[:4] == first[4:]
    assert sorted(first[:4]) == values
    assert all(b == values[(values.index(a) + 1) % 4] for a, b in pairwise(first))


FILES = scale_work.Files(Line(1e-4, 1e-10), 1e-5, Line(0.01, 1e-9), 1e-3, 0.0)
WIRE = scale_work.Wire(Line(1e-5, 1e-10), Line(2e-5, 5e-10))


def point(devices: int, gap: float, checkpoint: float, after: float) -> scale_runs.Point:
    alone = scale_runs.Alone([0.02] * 50, [0.002] * 50, 50 * 0.022)
    gaps, latencies = [gap] * 50, [devices * gap] * 50
    return scale_runs.Point(devices, 10.0, [1 / gap], latencies, gaps, [checkpoint], gap, after, alone)


def test_the_parameters_of_the_loop_come_from_what_is_beside_the_work_alone() -> None:
    part = 0.1 / CHECKPOINT_EVERY
    points = [point(1, 0.024, 0.1, 0.0), *(point(n, 0.025, 0.125, 0.002 + 0.001 + part) for n in (4, 16))]
    work = scale_work.work_of(points, FILES, WIRE, 10_000_000)
    assert work.after == pytest.approx(0.001)
    assert work.loop == pytest.approx(0.002)
    assert work.own == pytest.approx(0.024 - 0.022)
    done = scale_work.simulated(work, points[1].alone, 16, 10_000_000, 60.0, 0)
    kept = sum(work.checkpoint_ratios) / 3 * FILES.checkpoint(10_000_000, CHECKPOINT_EVERY, 16)
    assert done.rate() == pytest.approx(1 / (0.025 + kept / CHECKPOINT_EVERY), rel=0.02)
    row = agreement("light", point(8, 0.025, 0.1, 0.003), work, 10_000_000)
    assert row.ratios()[1] == pytest.approx(1.0, abs=0.05)


def test_on_a_shared_core_the_loop_takes_longer_too() -> None:
    work = scale_work.Work(0.002, 0.001, 0.001, FILES, WIRE, [0.0], {})
    alone = scale_runs.Alone([0.02] * 50, [0.002] * 50, 50 * 0.022)
    busy = scale_runs.Alone([0.04] * 50, [0.004] * 50, 50 * 0.022)
    rates = [scale_work.simulated(work, one, 8, 10_000_000, 60.0, 0).rate() for one in (alone, busy)]
    assert rates[0] == pytest.approx(2 * rates[1], rel=0.02)


def test_a_ring_over_a_network_is_no_faster_than_on_loopback() -> None:
    ring = scale_gloo.Hops(1e-4, 5e-10)
    assert ring.all_reduce(1, 1e6) == 0.0
    assert ring.all_reduce(2, 1e6) == pytest.approx(2 * (1e-4 + 5e-10 * 5e5))
    slow = ring.over(scale_gloo.Network("slow", 1e-3, 1e9))
    assert slow.all_reduce(4, 1e6) == pytest.approx(6 * (1.1e-3 + 8e-9 * 2.5e5))
    assert ring.over(scale_gloo.Network("fast", 0.0, 1e12)) == ring


def calibrated() -> scale_answers.World:
    results = scale.read(scale.RESULTS)
    assert results.work is not None
    assert results.gloo is not None
    assert results.profile is not None
    return scale_answers.World(results.work, results.gloo, results.profile, scale_stated.STATED)


def test_the_first_try_is_the_number_of_ranks_that_are_busy_all_the_time() -> None:
    world = calibrated()
    *_, case = scale_answers.cases(scale_stated.STATED)  # GPU
    lone = scale_answers.lone_seconds(world, case)
    found = scale_answers.answer(world, case)
    first = scale_answers.first_try(world, case, lone)
    assert first <= found.tried[0] <= math.ceil(1.2 * first)
    assert found.met
    assert found.p50 <= scale_answers.SLOWER * found.lone_p50
    assert sum(share for part, share in found.use.items() if part != "network") <= 1.0 + 1e-6


def test_the_page_gets_its_blocks_from_the_results_and_the_same_ones_each_time(tmp_path: Path) -> None:
    results = scale.read(scale.RESULTS)
    with pytest.raises(SettingError, match=r"without blocks agreement, gloo, measured, needs, stated"):
        scale_docs.write(tmp_path, results)
    page = tmp_path / "scale.md"
    names = ("measured", "agreement", "gloo", "stated", "needs")
    page.write_text(
        "Before.\n" + "".join(f"<!-- scale.py: {name} -->\nold\n<!-- end -->\nBetween.\n" for name in names)
    )
    scale_docs.write(tmp_path, results)
    text, plots = page.read_text(), {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert "\nold\n" not in text
    assert text.startswith("Before.\n")
    assert text.count("Between.") == len(names)
    assert set(plots) == {"scale-ranks.svg", "scale-use.svg"}
    scale_docs.write(tmp_path, results)
    assert page.read_text() == text
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")} == plots


def test_the_committed_answers_are_of_the_committed_calibration() -> None:
    assert scale.read(scale.RESULTS).are_answers_current(), "run `python benchmarks/scale.py --answers --write docs`"


def test_assumptions_have_one_digest_before_they_are_written_and_after() -> None:
    read = msgspec.json.decode(msgspec.json.encode(scale_stated.STATED), type=scale_stated.Stated)
    assert scale_answers.digest(None, None, None, read) == scale_answers.digest(None, None, None, scale_stated.STATED)


def test_answers_of_an_older_calibration_are_seen(tmp_path: Path) -> None:
    scale.keep(tmp_path / "scale.json", scale.read(scale.RESULTS))
    results = scale.read(tmp_path / "scale.json")
    assert results.are_answers_current()
    assert "older calibration" not in scale_docs.rendered(results)["needs"]
    assert results.work is not None
    results.work = msgspec.structs.replace(results.work, loop=results.work.loop + 1e-4)
    assert not results.are_answers_current()
    assert "older calibration" in scale_docs.rendered(results)["needs"]


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    text = (scale.RESULTS.parents[1] / "scale.md").read_text()
    for name, block in scale_docs.rendered(scale.read(scale.RESULTS)).items():
        assert block.strip() in text, f"{name}: run `python benchmarks/scale.py --write docs`"


def test_a_figure_beyond_the_bound_is_marked() -> None:
    row = Agreement("light", 8, 100, 20.0, 1.0, (10.0, 10.5), (0.5, 0.6), (1.0, 0.85), (0.02, 0.021))
    assert row.holds() == 1
    text = scale_docs.agreement([row])
    assert text.count("1.05") == 2
    assert "**1.20**" in text
    assert "**0.85**" in text
    assert "not met for 2 of 3 figures" in text
    assert "1 of 1 of steps/s (light 8), 0 of 1 of p50, 0 of 1 of p99" in text
    assert "so are 1 of 1 of processor time" in text
    met = msgspec.structs.replace(row, p50=(0.5, 0.5), p99=(1.0, 1.0))
    assert "was met for all 3 figures" in scale_docs.agreement([met])


def test_what_was_clipped_and_the_spread_of_checkpoints_are_shown() -> None:
    ratios = [0.5, 9.0, 2.0]
    work = scale_work.Work(0.002, 0.0, 0.001, FILES, WIRE, ratios, {}, {"loop": 0.002, "after": -0.0004, "own": 0.001})
    text = scale_docs.measured(scale.Results(work=work))
    assert "0.00 (clipped; measured: -0.40)" in text
    assert "| 2.00 (0.50 … 9.00, 3 checkpoints) |" in text


TINY = Model(
    "vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 32, "num_heads": 2, "depth": 2}, 1, 4
)


@pytest.mark.slow
def test_a_real_trainer_is_measured_and_simulated(tmp_path: Path) -> None:
    with scale_runs.stand(tmp_path / "stand", TINY) as measure:
        found = [measure(count, 6.5, 1) for count in (1, 4)]
    size = scale_work.head_bytes(tmp_path / "stand" / "recording" / "bundle")
    for real in found:
        assert len(real.gaps) > 50
        assert len(real.latencies) > 50
    work = scale_work.work_of(
        found, scale_work.measure_files(tmp_path / "files", size), scale_work.measure_wire(), size
    )
    assert work.loop + work.after > 0
    assert agreement("tiny", found[1], work, size).ratios()[0] == pytest.approx(1.0, abs=0.7)


@pytest.mark.slow
def test_all_reduce_is_timed_between_real_ranks() -> None:
    seconds = scale_gloo._all_reduces(2)
    assert 0 < seconds[64] < seconds[16_000_000]
