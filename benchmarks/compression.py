"""What trunk + ADC costs beside the bare trunk, both exported the same way and run by ONNX Runtime.

python benchmarks/compression.py --json out/compression.json
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from harness import Result, arguments, compare, medians_ms, show
from torch.export import Dim

from adc_edge import adc
from adc_edge.export.graph import client_graph, trace
from adc_edge.ratio import Ratio
from adc_edge.split import create_vit, cut
from adc_edge.trunk import Trunk

Feeds = dict[str, npt.NDArray[Any]]


def bare_graph(trunk: Trunk) -> onnx.ModelProto:
    """The trunk alone, exported the same way."""
    example = torch.randn(2, trunk.spec.channels, *trunk.spec.image_size)
    return trace(trunk, (example,), [Dim("B", min=2, max=65_536)], ["images"], ["activations"])


def frozen(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its weights as constants, which ONNX Runtime may fold and pack."""
    fixed = copy.deepcopy(model)
    constants = {initializer.name for initializer in fixed.graph.initializer}
    inputs = [i for i in fixed.graph.input if i.name not in constants]
    del fixed.graph.input[:]
    fixed.graph.input.extend(inputs)
    return fixed


def runner(model: onnx.ModelProto, feeds: Feeds) -> Callable[[], list[npt.NDArray[Any]]]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        onnx.save(model, path)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def after_the_trunk(
    z: npt.NDArray[Any], assignment: npt.NDArray[Any], tokens: npt.NDArray[Any], clusters: int
) -> npt.NDArray[Any]:
    """The non-lazy formulation's second half: merge the whole output, then select."""
    merged = adc.cluster_mean(torch.from_numpy(z), torch.from_numpy(assignment), torch.arange(clusters))
    return adc.gather_tokens(merged, torch.from_numpy(tokens)).numpy()


def main() -> None:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--split", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    torch.manual_seed(0)
    trunk, _ = cut(create_vit(args.model, {}, None), args.split)
    shape = Ratio(xi=args.ratio).shape(args.batch_size, trunk.spec.tokens, trunk.spec.prefix)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((args.batch_size, trunk.spec.channels, *trunk.spec.image_size)).astype(np.float32)
    seeds = rng.permutation(args.batch_size)[: shape.clusters].astype(np.int64)
    slots = np.zeros(shape.kept - trunk.spec.prefix, np.int64)
    feeds: Feeds = {"images": images, "seeds": seeds, "slots": slots}
    weights: Feeds = {name: p.detach().numpy() for name, p in trunk.named_parameters()}
    client, bare = client_graph(trunk), bare_graph(trunk)
    cases = {
        "bare": runner(bare, {"images": images}),
        "adc": runner(client, feeds),
        "adc, weights fed": runner(client, feeds | weights),
        "bare, frozen": runner(frozen(bare), {"images": images}),
        "adc, frozen": runner(frozen(client), feeds),
    }
    activations, assignment, tokens, counts = cases["adc"]()
    plain = after_the_trunk(cases["bare"]()[0], assignment, tokens, shape.clusters)
    used = counts > 0
    difference = float(np.abs(activations[used] - plain[used]).max())
    assert difference <= 1e-4 * float(np.abs(plain).max()), f"the lazy graph differs by {difference}"
    ms = medians_ms(cases, args.rounds)

    def row(name: str, case: str, reference: str) -> Result:
        return compare(name, ms[case], ms[reference], "ms")

    results = [
        row("trunk + ADC v bare trunk", "adc", "bare"),
        row("trunk + ADC, weights fed v bare trunk", "adc, weights fed", "bare"),
        row("frozen: trunk + ADC v bare trunk", "adc, frozen", "bare, frozen"),
        row("refreshable v frozen graph", "adc", "adc, frozen"),
        compare("lazy v whole output, merged and selected", difference, float(np.abs(plain).max()), "max |difference|"),
    ]
    title = f"{args.model} split {args.split}, B={args.batch_size}, ξ={shape.xi:.3f}, median of {args.rounds}"
    show(title, results, args.json)


if __name__ == "__main__":
    main()
