"""ONNX -> a serialized TensorRT engine, for the GPU at hand. Never run on a GPU.

The network is strongly typed: what computes in which precision stands in the graph, the builder chooses kernels only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from adc_edge.edge_runtime.engines.tensorrt.library import why
from adc_edge.errors import EngineError, SettingError
from adc_edge.method.spec import TrunkSpec

TensorShape = tuple[int, ...]


class BuildShape(NamedTuple):
    """Shapes that an engine is fastest at. It also takes fewer images, any T <= B and any S."""

    images: int  # B, the most; also of evaluations, which run T = B and S = all
    clusters: int
    slots: int

    def check(self, spec: TrunkSpec) -> None:
        """Raise SettingError unless it can be."""
        if not (1 <= self.clusters <= self.images and 1 <= self.slots <= spec.patches):
            raise SettingError(
                f"an engine for B={self.images}, T={self.clusters}, S={self.slots}",
                f"1 <= T <= B and 1 <= S <= {spec.patches}",
                "choose another --ratio or --batch-size",
            )

    def shapes(self, spec: TrunkSpec) -> dict[str, tuple[TensorShape, TensorShape, TensorShape]]:
        """Smallest, usual and largest shape of each input."""
        image = (spec.channels, *spec.image_size)
        return {
            "images": ((1, *image), (self.images, *image), (self.images, *image)),
            "seeds": ((1,), (self.clusters,), (self.images,)),
            "slots": ((1,), (self.slots,), (spec.patches,)),
        }


class Order(NamedTuple):
    """Graph, shapes and outputs of an engine to build."""

    graph: Path
    opset: int
    shapes: dict[str, tuple[TensorShape, TensorShape, TensorShape]]  # of the inputs whose shape is dynamic
    outputs: tuple[str, ...]  # the graph's others are left out
    refittable: tuple[str, ...] = ()  # weights by name


class Built(NamedTuple):
    """An engine, and the times of this GPU's kernels."""

    engine: bytes
    timing: bytes


class NotRefittable(Exception):
    """Weights that TensorRT does not know by name, or that it would not change."""


def build(trt: Any, logger: Any, order: Order, timing: bytes = b"") -> Built:
    """Build an engine: minutes on a board.

    Raises:
        SettingError: the graph's opset is beyond this TensorRT, or the graph lacks an output.
        EngineError: the graph cannot be parsed or built; with all that TensorRT says of it.
        NotRefittable: weights that the parser has not kept under their names.
    """
    check_opset(trt.__version__, order)
    builder = trt.Builder(logger)
    # 11 is always so and ignores the flag; 10 needs it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)  # the network points into its weights: it must live until all is built
    _parse(parser, order.graph)
    _keep_outputs(network, order)
    config = _config(trt, builder, order)
    if order.refittable:
        # REFIT would make the graph's constants refittable as well: those would fuse less, and a refit may then want
        # values for them. REFIT_IDENTICAL is undefined once weights differ.
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        _mark(network, order.refittable)
    timing_cache = _timing_cache(config, timing)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f"TensorRT {trt.__version__} cannot build {order.graph.name}{why(logger)}",
            "an engine",
            "give it memory: end what else uses the GPU, cut the batch (more --micro-batches); "
            "or use --engine onnxruntime",
        )
    return Built(bytes(plan), b"" if timing_cache is None else bytes(timing_cache.serialize()))


def check_opset(version: str, order: Order) -> None:
    """Raise SettingError unless this TensorRT takes the graph's opset."""
    from adc_edge.onnx.tensorrt_support import opset_window_of

    lowest, highest = opset_window_of(version)
    if not lowest <= order.opset <= highest:
        raise SettingError(
            f"{order.graph.name} is in opset {order.opset}",
            f"{lowest} to {highest}, which TensorRT {version} takes",
            "export the model again with an adc-edge that writes such a one, or install another TensorRT",
        )


def _parse(parser: Any, graph: Path) -> None:
    if parser.parse(graph.read_bytes()):
        return
    faults = [parser.get_error(number) for number in range(parser.num_errors)]
    told = [f"{fault.node_operator()} {fault.node_name()} (node {fault.node()}): {fault.desc()}" for fault in faults]
    raise EngineError(
        f"TensorRT cannot take {graph.name}:\n    " + ("\n    ".join(told) or "it does not say why"),
        "operators that this TensorRT has",
        "export the model again with this adc-edge; if it persists, use --engine onnxruntime and report the above",
    )


def _keep_outputs(network: Any, order: Order) -> None:
    tensors = [network.get_output(number) for number in range(network.num_outputs)]
    missing = set(order.outputs) - {tensor.name for tensor in tensors}
    if missing:
        raise SettingError(
            f"{order.graph.name} has no output {', '.join(sorted(missing))}",
            "a bundle of this version of adc-edge",
            "export the model again, or leave --freeze-first out",
        )
    for tensor in tensors:
        if tensor.name not in order.outputs:
            network.unmark_output(tensor)


def _config(trt: Any, builder: Any, order: Order) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; in TF32 the scores of a batch cluster otherwise
    profile = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in order.shapes.items():
        profile.set_shape(name, smallest, usual, largest)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT refuses the shapes {order.shapes}", "a valid profile", "report this")
    return config


def _timing_cache(config: Any, content: bytes) -> Any:
    """Give the builder the known times of kernels; it starts anew if they are empty or another GPU's."""
    for each in (content, b""):
        timing_cache = config.create_timing_cache(each)
        if timing_cache is not None and config.set_timing_cache(timing_cache, ignore_mismatch=False):
            return timing_cache
    return None


def _mark(network: Any, names: tuple[str, ...]) -> None:
    unknown = [name for name in names if not network.mark_weights_refittable(name)]
    if unknown:
        raise NotRefittable(f"TensorRT has no weights called {', '.join(unknown[:4])} ({len(unknown)} in all)")
