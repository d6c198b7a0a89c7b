"""Time of the trainer's step with the codec v without it: decode, learn, encode and the optimizer's step.

    python benchmarks/trainer_step.py --device cuda --tflops 989 --json out/trainer_step.json
    python benchmarks/trainer_step.py --device cpu --batches 8 --rounds 3

The second command is a check without a GPU. The head is the second half of a DeiT with random weights at 224 px, in
bf16 on a GPU. The tensors have the spectrum of DeiT's activations. The cases take turns: the codec in torch on the
device, NumPy's on the CPU with the copies that it needs, and no codec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from codec import SIZE, SPLIT, activations
from harness import Result, arguments, compare, medians_ms, show
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.codec import precision as in_torch
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.codec import precision as in_numpy
from adc_edge.codec.precision import Precision
from adc_edge.method.split import create_vit, split_vit
from adc_edge.optimizer.settings import OptimizerSettings

MODELS = {"DeiT-T": "deit_tiny_patch16_224", "DeiT-S": "deit_small_patch16_224"}
CLASSES = 100
UP: Precision = "pca1"
DOWN: Precision = "pca0.25"


class TrainerStep:
    """A head and one message for it."""

    def __init__(self, model: str, images: int, device: torch.device) -> None:
        _, head = split_vit(create_vit(MODELS[model], {"img_size": SIZE}, CLASSES), SPLIT)
        cuda = device.type == "cuda"
        self.device, self.training = device, HeadTraining(head, OptimizerSettings(), str(device), bf16=cuda)
        x = activations(images, head.vit.embed_dim)
        self.shape, self.data = x.shape, bytes(in_numpy.encode(x, UP))
        self.there = torch.from_numpy(x).to(device)
        self.soft = np.full((images, CLASSES), 1 / CLASSES, np.float32)

    def bare(self) -> None:
        self._learn(self.there)
        self._wait()

    def with_torch(self) -> None:
        in_torch.encode(self._learn(in_torch.decode(self.data, self.shape, UP, self.device)), DOWN)
        self._wait()

    def with_numpy(self) -> None:
        activations = torch.from_numpy(in_numpy.decode(self.data, self.shape, UP)).to(self.device)
        in_numpy.encode(self._learn(activations).cpu().numpy(), DOWN)
        self._wait()

    def flops(self) -> int:
        """Operations of forward and backward, which takes twice as many as the forward."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.training.head(self.there)
        return 3 * int(counter.get_total_flops())

    def _learn(self, activations: Tensor) -> Tensor:
        step = StepAccumulator(1)
        gradient = self.training.learn(activations, self.soft, True, step).gradient
        self.training.update(step, 0)
        assert gradient is not None
        return gradient

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def results_of(model: str, images: int, device: torch.device, rounds: int, tflops: float) -> Iterator[Result]:
    step = TrainerStep(model, images, device)
    name = f"{model}, B={images}"
    cases: dict[str, Callable[[], object]] = {"bare": step.bare, "torch": step.with_torch, "numpy": step.with_numpy}
    ms = medians_ms(cases, rounds)
    yield compare(f"{name}: step with the codec in torch v without", ms["torch"], ms["bare"], "ms")
    yield compare(f"{name}: step with NumPy's codec v without", ms["numpy"], ms["bare"], "ms")
    if tflops:
        bound_ms = step.flops() / tflops / 1e9
        yield compare(f"{name}: step with the codec in torch v the head's operations", ms["torch"], bound_ms, "ms")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256, 512], metavar="B")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tflops", type=float, default=0, help="dense bf16 rate of the card, for the head's bound")
    args = parser.parse_args()
    device = torch.device(args.device)
    card = torch.cuda.get_device_name(device) if args.device == "cuda" else "CPU"
    results: list[Result] = []
    for model in args.models:
        for images in args.batches:
            results += results_of(model, images, device, args.rounds, args.tflops)
    show(f"trainer's step, head from block {SPLIT + 1} on, {SIZE} px, {UP} up, {DOWN} down, {card}", results, args.json)


if __name__ == "__main__":
    main()
