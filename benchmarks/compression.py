"""Time of trunk + ADC compared with the bare trunk, both exported the same way and run by ONNX Runtime.

    python benchmarks/compression.py --json out/compression.json

Other rows show the time of k-means by its iterations, ONNX Runtime compared with PyTorch, the cost of outputs that are
not fetched, and (at 112 px) the growth with the batch and with ξ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from harness import Result, arguments, compare, medians_ms, show
from torch.export import Dim

from adc_edge.export.graph import client_graph, trace
from adc_edge.method import adc
from adc_edge.method.ratio import Ratio
from adc_edge.method.split import create_vit, split_vit
from adc_edge.method.trunk import Trunk
from adc_edge.onnx.session import cpu_session
from adc_edge.storage.bundle import OUTPUTS

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


def without_hidden(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the contract's four outputs alone."""
    fewer = copy.deepcopy(model)
    del fewer.graph.output[len(OUTPUTS) :]
    return fewer


def make_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session with the same options as the device's engine."""
    return cpu_session(model.SerializeToString())


def runner(model: onnx.ModelProto, feeds: Feeds) -> Callable[[], list[npt.NDArray[Any]]]:
    """A function that runs the graph for its first outputs. Hidden states are not fetched."""
    session = make_session(model)
    outputs = [output.name for output in model.graph.output][: len(OUTPUTS)]
    return lambda: session.run(outputs, feeds)


def after_the_trunk(
    z: npt.NDArray[Any], assignment: npt.NDArray[Any], tokens: npt.NDArray[Any], clusters: int
) -> npt.NDArray[Any]:
    """Second half of the direct formulation: merge the whole output, then select tokens."""
    merged = adc.cluster_mean(torch.from_numpy(z), torch.from_numpy(assignment), torch.arange(clusters))
    return adc.gather_tokens(merged, torch.from_numpy(tokens)).numpy()


class Case:
    """A trunk, one batch for it, and the clusters and tokens that make ξ."""

    def __init__(self, model: str, split: int, batch: int, xi: float, model_args: dict[str, Any] | None = None) -> None:
        torch.manual_seed(0)
        self.trunk, _ = split_vit(create_vit(model, model_args or {}, None), split)
        self.feeds, self.xi, self.clusters = make_feeds(self.trunk, batch, xi)
        self.images: Feeds = {"images": self.feeds["images"]}

    def eager(self) -> None:
        """Trunk + ADC in PyTorch."""
        with torch.no_grad():
            self.trunk.compress(*(torch.from_numpy(value) for value in self.feeds.values()))

    def scores(self) -> torch.Tensor:
        """CLS attention ``[B, N]`` of the last block."""
        with torch.no_grad():
            last, h, keys, _ = self.trunk._keys_values(self.trunk.states(torch.from_numpy(self.feeds["images"]))[-1])
            return adc.cls_attention(last.attn.queries(h[:, :1]), keys, last.attn.scale)


def make_feeds(trunk: Trunk, batch: int, xi: float) -> tuple[Feeds, float, int]:
    """The inputs of client.onnx, their ξ, and T."""
    shape = Ratio(xi=xi).shape(batch, trunk.spec.tokens, trunk.spec.prefix)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, trunk.spec.channels, *trunk.spec.image_size)).astype(np.float32)
    init_rows = rng.permutation(batch)[: shape.clusters].astype(np.int64)
    slots = np.zeros(shape.kept - trunk.spec.prefix, np.int64)
    return {"images": images, "seeds": init_rows, "slots": slots}, shape.xi, shape.clusters


def forwards(case: Case, rounds: int) -> list[Result]:
    """Trunk + ADC compared with the bare trunk, refreshable and frozen, and with PyTorch."""
    weights: Feeds = {name: p.detach().numpy() for name, p in case.trunk.named_parameters()}
    client, bare = client_graph(case.trunk), bare_graph(case.trunk)
    cases: dict[str, Callable[[], Any]] = {
        "bare": runner(bare, case.images),
        "adc": runner(client, case.feeds),
        "adc, weights fed": runner(client, case.feeds | weights),
        "adc, no hidden states": runner(without_hidden(client), case.feeds),
        "bare, frozen": runner(frozen(bare), case.images),
        "adc, frozen": runner(frozen(client), case.feeds),
        "PyTorch": case.eager,
    }
    activations, assignment, tokens, counts = cases["adc"]()
    plain = after_the_trunk(cases["bare"]()[0], assignment, tokens, case.clusters)
    used = counts > 0
    difference, largest = float(np.abs(activations[used] - plain[used]).max()), float(np.abs(plain).max())
    assert difference <= 1e-4 * largest, f"the lazy graph differs by {difference}"
    ms = medians_ms(cases, rounds)

    def row(name: str, case: str, reference: str) -> Result:
        return compare(name, ms[case], ms[reference], "ms")

    return [
        row("trunk + ADC v bare trunk", "adc", "bare"),
        row("trunk + ADC, weights fed v bare trunk", "adc, weights fed", "bare"),
        row("frozen: trunk + ADC v bare trunk", "adc, frozen", "bare, frozen"),
        row("refreshable v frozen graph", "adc", "adc, frozen"),
        row("hidden states declared, not fetched v absent", "adc", "adc, no hidden states"),
        row("trunk + ADC: ONNX Runtime, weights fed v PyTorch", "adc, weights fed", "PyTorch"),
        compare("lazy v whole output, merged and selected", difference, largest, "max |difference|"),
        *kmeans_shares(case, ms["PyTorch"], rounds),
    ]


def kmeans_shares(case: Case, forward_ms: float, rounds: int) -> list[Result]:
    """k-means by its iterations, compared with the whole forward in the same library."""
    scores, init_rows = case.scores(), torch.from_numpy(case.feeds["seeds"])
    counts = (1, 5, adc.LLOYD_ITERATIONS, 20)
    ms = medians_ms({str(n): partial(adc.kmeans, scores, init_rows, n) for n in counts}, rounds)
    return [compare(f"k-means, {n} iterations v trunk + ADC, PyTorch", ms[str(n)], forward_ms, "ms") for n in counts]


def growth(model: str, split: int, rounds: int) -> list[Result]:
    """Growth of trunk + ADC with the batch (for each image) and with ξ (compared with a line through both ends)."""
    case = Case(model, split, 16, 0.1, {"img_size": 112})
    batches, ratios = (16, 32, 64, 128, 256), (0.02, 0.1, 0.2, 0.4, 0.8)
    feeds = {f"B={batch}": make_feeds(case.trunk, batch, 0.1) for batch in batches}
    feeds |= {f"ξ={xi}": make_feeds(case.trunk, 64, xi) for xi in ratios}
    session = make_session(client_graph(case.trunk))
    ms = medians_ms({name: partial(session.run, OUTPUTS, each) for name, (each, _, _) in feeds.items()}, rounds)
    image = {batch: ms[f"B={batch}"] / batch for batch in batches}
    results = [compare(f"B={batch}, ξ=0.1 v B=16, by image", image[batch], image[16], "ms") for batch in batches]
    points = [(feeds[f"ξ={xi}"][1], ms[f"ξ={xi}"]) for xi in ratios]
    (first, low), (last, high) = points[0], points[-1]
    for xi, value in points:
        line = low + (high - low) * (xi - first) / (last - first)
        results.append(compare(f"ξ={xi:.3f}, B=64 v straight line", value, line, "ms"))
    return results


def main() -> None:
    parser = arguments("Trunk + ADC v the bare trunk, ONNX Runtime; k-means; PyTorch; growth with B and ξ.")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--split", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--growth-rounds", type=int, default=5, help="rounds of the growth with B and ξ; 0: skip it")
    args = parser.parse_args()
    case = Case(args.model, args.split, args.batch_size, args.ratio)
    title = f"{args.model} split {args.split}, B={args.batch_size}, ξ={case.xi:.3f}, median of {args.rounds}"
    results = forwards(case, args.rounds)
    if args.growth_rounds:
        title += f"; growth at 112 px, median of {args.growth_rounds}"
        results += growth(args.model, args.split, args.growth_rounds)
    show(title, results, args.json)


if __name__ == "__main__":
    main()
