"""Ways to give an ONNX Runtime session new weights, compared with the frozen graph and with a whole step.

    python benchmarks/refresh.py --json out/refresh.json

The cost of a refresh is the time to set new weights and run, minus the time of the frozen graph, whose weights ONNX
Runtime has folded and packed. A step is forward (ours), recompute and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from compression import Feeds, frozen, make_feeds, make_session
from harness import Result, arguments, compare, medians_ms, show
from shim import make_case

from adc_edge.export.graph import client_graph
from adc_edge.storage.bundle import OUTPUTS


def in_place(session: ort.InferenceSession, feeds: Feeds, weights: Feeds) -> Callable[[], object]:
    """IOBinding with an OrtValue for each parameter, which is updated from the parameter before each run."""
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(value.copy()) for name, value in weights.items()}
    bind(binding, feeds, values)

    def run() -> None:
        for name, value in values.items():
            value.update_inplace(weights[name])
        session.run_with_iobinding(binding)

    return run


def wrapped(session: ort.InferenceSession, feeds: Feeds, weights: Feeds) -> Callable[[], object]:
    """IOBinding to the memory of the parameters, which the optimizer writes. No update is needed."""
    binding = session.io_binding()
    bind(binding, feeds, {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in weights.items()})
    return lambda: session.run_with_iobinding(binding)


def bind(binding: Any, feeds: Feeds, values: dict[str, Any]) -> None:
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name in OUTPUTS:
        binding.bind_output(name)


def new_session(model: onnx.ModelProto, feeds: Feeds, weights: Feeds) -> Callable[[], object]:
    """A new session for a graph that contains the new weights."""
    constants = frozen(model)
    places = {initializer.name: initializer for initializer in constants.graph.initializer}

    def run() -> None:
        for name, value in weights.items():
            places[name].raw_data = value.tobytes()
        make_session(constants).run(OUTPUTS, feeds)

    return run


def ways(split: int, rounds: int) -> list[Result]:
    """Measure every way, in turns with the frozen graph and with the rest of the step."""
    case = make_case(split, 224)
    trunk = case.shim.trunk
    weights: Feeds = dict(case.shim.weights())
    feeds, _, _ = make_feeds(trunk, len(case.images), 0.1)
    model = client_graph(trunk)
    session, constant = make_session(model), make_session(frozen(model))
    runs: dict[str, Callable[[], object]] = {
        "frozen graph": lambda: constant.run(OUTPUTS, feeds),
        "weights as feeds (ours)": lambda: session.run(OUTPUTS, feeds | weights),
        "OrtValues updated in place": in_place(make_session(model), feeds, weights),
        "OrtValues on the parameters' memory": wrapped(make_session(model), feeds, weights),
        "a new session": new_session(model, feeds, weights),
    }
    ms = medians_ms(runs | {"recompute + backward": case.train}, rounds)
    base = ms["frozen graph"]
    step = ms["weights as feeds (ours)"] + ms["recompute + backward"]
    results = [compare(f"split {split}: {name} v frozen graph", ms[name], base, "ms") for name in [*runs][1:]]
    return results + [
        compare(f"split {split}: refresh by {name} v step", ms[name] - base, step, "ms") for name in [*runs][1:]
    ]


def check(split: int) -> None:
    """Check that the session computes with the new weights, also when they change once more."""
    case = make_case(split, 112)
    weights: Feeds = {name: value.copy() for name, value in case.shim.weights().items()}
    feeds, _, _ = make_feeds(case.shim.trunk, 8, 0.1)
    model = client_graph(case.shim.trunk)
    session, old = make_session(model), make_session(model).run(["activations"], feeds)[0]
    values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in weights.items()}
    binding = session.io_binding()
    bind(binding, feeds, values)
    for turn in (1, 2):
        for value in weights.values():
            value += np.float32(0.01)
        session.run_with_iobinding(binding)
        new = make_session(model).run(["activations"], feeds | weights)[0]
        assert np.array_equal(binding.copy_outputs_to_cpu()[0], new), f"the parameters' memory, turn {turn}"
        assert np.abs(new - old).max() > 1e-3
        old = new


def main() -> None:
    parser = arguments("Ways to give a running session new weights, compared with the frozen graph and with a step.")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    check(1)
    results = [result for split in (3, 6) for result in ways(split, args.rounds)]
    show(f"refresh: DeiT-T, B=32, ξ=0.1, median of {args.rounds}", results, args.json)


if __name__ == "__main__":
    main()
