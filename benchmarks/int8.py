"""Time of trunk + ADC in INT8 compared with FP32, ONNX Runtime on the CPU.

    python benchmarks/int8.py --weights deit_tiny.safetensors --json out/int8.json

The ranges come from noise, which is enough to measure times. `adc-edge calibrate` measures the accuracy of INT8.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from compression import make_feeds
from harness import Result, arguments, compare, medians_ms, show

from adc_edge.calibration.int8.graph import frozen, linears, quantise, tapped
from adc_edge.calibration.int8.ranges import collect
from adc_edge.export.graph import client_graph
from adc_edge.method.split import create_vit, split_vit
from adc_edge.method.trunk import Trunk
from adc_edge.onnx.session import cpu_session
from adc_edge.storage.bundle import OUTPUTS


def graphs(trunk: Trunk) -> dict[str, bytes]:
    """client.onnx, the same with constant weights, and in INT8."""
    spec, model = trunk.spec, client_graph(trunk)
    chosen, fixed = linears(model, spec), frozen(model)
    noise = np.random.default_rng(0).standard_normal((8, spec.channels, *spec.image_size)).astype(np.float32)
    session = cpu_session(tapped(fixed, [linear.input for linear in chosen]))
    reaches = collect(session, {each.name: each.input for each in chosen}, [noise], spec.patches, spec.prefix)
    scales = {name: reach.scale("percentile", 99.99) for name, reach in reaches.items()}
    made = {"client.onnx": model, "frozen": fixed, "int8": quantise(fixed, chosen, scales)}
    return {name: graph.SerializeToString() for name, graph in made.items()}


def results(trunk: Trunk, batches: list[int], xi: float, rounds: int) -> list[Result]:
    made = graphs(trunk)
    sessions = {name: cpu_session(graph) for name, graph in made.items()}
    found = [compare("file", len(made["int8"]) / 1e6, len(made["client.onnx"]) / 1e6, "MB")]
    for batch in batches:
        feeds, _, _ = make_feeds(trunk, batch, xi)
        ms = medians_ms({name: partial(each.run, OUTPUTS, feeds) for name, each in sessions.items()}, rounds)
        found.append(compare(f"INT8 v client.onnx, B={batch}", ms["int8"], ms["client.onnx"], "ms"))
        found.append(compare(f"INT8 v constant weights, B={batch}", ms["int8"], ms["frozen"], "ms"))
    return found


def main() -> None:
    parser = arguments("The trunk in INT8 v FP32, ONNX Runtime on the CPU.")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", type=Path, help="weights file (safetensors); random weights without it")
    parser.add_argument("--split", type=int, default=6)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 32])
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    trunk, _ = split_vit(create_vit(args.model, {}, None, args.weights), args.split)
    title = f"{args.model} split {args.split}, ξ={args.ratio}, median of {args.rounds}"
    show(title, results(trunk, args.batch_sizes, args.ratio, args.rounds), args.json)


if __name__ == "__main__":
    main()
