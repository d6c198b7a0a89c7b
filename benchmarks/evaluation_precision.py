"""Decisions and accuracy of an evaluation at each precision, compared with fp32, on the halves of a trained run.

    python benchmarks/evaluation_precision.py --run-device DIR --run-trainer DIR --data SRC --json out/precision.json

The halves are those of `serve --run` and `trainer --run`. Test images are sent in messages as `serve` sends them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from harness import Result, arguments, compare, show
from safetensors.numpy import load_file

from adc_edge.arrays import Float32, Int64
from adc_edge.codec.precision import Precision, decode, encode
from adc_edge.data.loader import Loader
from adc_edge.data.sources import load_dataset
from adc_edge.method.split import create_vit, split_vit
from adc_edge.planning.message_sizes import EVALUATED_ROWS
from adc_edge.storage.bundle import HEAD, MANIFEST, TRUNK, parse_manifest

PRECISIONS: tuple[Precision, ...] = ("fp16", "int8", "int4", "pca4", "pca3", "pca2", "pca1")
BATCH = 32


def outputs_of(device: Path, trainer: Path, data: str) -> tuple[list[Float32], Int64, torch.nn.Module]:
    """The trunk's outputs ``[B, N, D]`` of each message, all labels, and the head."""
    manifest = parse_manifest((device / MANIFEST).read_bytes(), str(device))
    vit = create_vit(manifest.model, manifest.model_args, manifest.classes).eval()
    state = load_file(device / TRUNK) | load_file(trainer / HEAD)
    vit.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    trunk, head = split_vit(vit, manifest.split)
    loader = Loader(load_dataset(data).test, manifest.preprocessing, BATCH)
    outputs, labels = [], []
    with torch.no_grad():
        for indices in loader.sample(0, EVALUATED_ROWS // manifest.tokens):
            parts = [loader.plain(part) for part in np.split(indices, range(BATCH, len(indices), BATCH))]
            outputs.append(np.concatenate([trunk(torch.from_numpy(part.images)).numpy() for part in parts]))
            labels += [part.labels for part in parts]
    loader.close()
    return outputs, np.concatenate(labels), head


@torch.no_grad()
def decisions(head: torch.nn.Module, outputs: list[Float32]) -> Int64:
    found: Int64 = np.concatenate([head(torch.from_numpy(z)).argmax(1).numpy() for z in outputs])
    return found


def main() -> None:
    parser = arguments("Decisions and accuracy of an evaluation at each precision v fp32.")
    parser.add_argument("--run-device", type=Path, required=True)
    parser.add_argument("--run-trainer", type=Path, required=True)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    outputs, labels, head = outputs_of(args.run_device, args.run_trainer, args.data)
    exact = decisions(head, outputs)
    accuracy, size = float((exact == labels).mean()), sum(z.nbytes for z in outputs)
    results: list[Result] = []
    for precision in PRECISIONS:
        sent = [encode(z, precision) for z in outputs]
        received = [decode(data, z.shape, precision) for data, z in zip(sent, outputs, strict=True)]
        found = decisions(head, received)
        results.append(compare(f"{precision}: same decisions", float((found == exact).mean()), 1.0, "share"))
        results.append(compare(f"{precision}: accuracy v fp32", float((found == labels).mean()), accuracy, "share"))
        results.append(compare(f"{precision}: bytes v fp32", sum(map(len, sent)), size, "bytes"))
    show(f"evaluation of {len(labels)} test images of {args.data}", results, args.json)


if __name__ == "__main__":
    main()
