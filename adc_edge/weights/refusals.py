"""Refusals of weights that do not fit a model, each with the names of the tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from adc_edge.errors import ModelError
from adc_edge.weights.naming import Parts, listed

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_FLOAT_NAMES = "float32, float16, bfloat16 or float64"
_HINTS = (  # a name, whether the model has it (else the file), the remedy
    ("fc_norm.weight", True, "the file normalises before it pools: --model-arg global_pool=token"),
    ("fc_norm.weight", False, "the file normalises after it pools: --model-arg global_pool=avg"),
    ("dist_token", False, "the file is of a distilled model: for example --model deit_tiny_distilled_patch16_224"),
    ("dist_token", True, "the file is of a model without distillation: for example --model deit_tiny_patch16_224"),
    ("reg_token", False, "the file is of a model with registers: --model-arg reg_tokens=N"),
    ("blocks.0.ls1.gamma", False, "the file scales its layers: --model-arg init_values=1e-5"),
    ("norm_pre.weight", False, "the file is of a CLIP model: for example --model vit_base_patch16_clip_224"),
)


def refuse_other_architecture(own: Mapping[str, Tensor], model: str, names: list[str], file: str) -> None:
    """Refuse weights without a single tensor of the model's blocks."""
    if any(name in own for name in names if name.startswith("blocks.")):
        return
    prefixes = [
        found[1]
        for name in names
        if (found := re.match(r"([^\d]+?\.)blocks\.\d", name)) and name[found.end(1) :] in own
    ]
    what = f"no block of {model} is among its {len(names)} tensors ({listed(names, 3)})"
    raise ModelError(
        f"{file} is of another architecture: {what}",
        f"the weights of a {model}",
        f"strip the prefix {prefixes[0]} from its names, which is not a known one"
        if prefixes
        else "name the file of this model, or the --model of this file",
    )


def refuse_other_numbers(shared: Mapping[str, Parts], file: str) -> None:
    """Refuse tensors without values or without all of them, complex numbers, and quantised weights without scales."""
    parts = [part for group in shared.values() for part in group]
    absent = [f"{part.name} (meta)" for part in parts if part.value.is_meta]
    sparse = [f"{part.name} ({_text(part.value.layout)})" for part in parts if part.value.layout != torch.strided]
    types = [(part.value.dtype, f"{part.name} ({_text(part.value.dtype)})") for part in parts]
    complex_ = [text for kind, text in types if kind.is_complex]
    quantised = [text for kind, text in types if kind not in _FLOATS and not kind.is_complex]
    for names, what, expected, remedy in (
        (absent, "has tensors without values", "the values of all tensors", "save it again from a loaded model"),
        (sparse, "has sparse tensors", "dense tensors", "save them with .to_dense()"),
        (complex_, "has complex numbers", _FLOAT_NAMES, "give a file with real numbers"),
        (quantised, "is quantised", _FLOAT_NAMES, "give the file before quantisation"),
    ):
        if names:
            raise ModelError(f"{file} {what}: {listed(names, 3)}", expected, remedy)


def _text(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def refuse_infinite(shared: Mapping[str, Parts], file: str) -> None:
    """Refuse NaN and infinite values, also those that only float32 cannot hold."""
    wrong = [part.name for parts in shared.values() for part in parts if not part.value.float().isfinite().all()]
    if wrong:
        raise ModelError(
            f"{file} has NaN or infinite values in {listed(wrong)}",
            "finite numbers in float32",
            "take an earlier checkpoint",
        )


def misfit(
    faults: Mapping[str, str],
    values: Mapping[str, Tensor],
    tensors: Mapping[str, Parts],
    own: Mapping[str, Tensor],
    model: str,
    file: str,
) -> ModelError:
    """Return the error for weights that are partly another model's: the sizes that differ, and all faults by name."""
    reasons = _other_sizes(values, tensors, own)
    for kind in ("missing", "of another shape", "not used"):
        names = [name for name, fault in faults.items() if fault == kind]
        if kind == "of another shape":
            names = [f"{name} {list(values[name].shape)}, the model's {list(own[name].shape)}" for name in names]
        elif kind == "not used":
            names = [part.name for name in names for part in tensors[name]]
        reasons += [f"{len(names)} {kind}: {listed(names)}"] if names else []
    blocks = _blocks(tensors)
    deeper = blocks == set(range(len(blocks))) != _blocks(own)
    hints = [f"the file has another depth: --model-arg depth={len(blocks)}"] if deeper else []
    hints += [text for name, in_model, text in _HINTS if faults.get(name) == ("missing" if in_model else "not used")]
    return ModelError(
        f"{file} does not fit {model}: {'; '.join(reasons)}",
        f"each of the model's {len(own)} tensors, and no other",
        "; ".join(
            [*hints, "give the file's own --model and --model-arg, or accept tensors with --allow-missing PATTERN"]
        ),
    )


def _other_sizes(values: Mapping[str, Tensor], tensors: Iterable[str], own: Mapping[str, Tensor]) -> list[str]:
    depth, own_depth = len(_blocks(tensors)), len(_blocks(own))
    reasons = [f"another depth: {depth} blocks, the model has {own_depth}"] if depth != own_depth else []
    more, fewer = _inside_blocks(tensors) - _inside_blocks(own), _inside_blocks(own) - _inside_blocks(tensors)
    texts = [f"{verb} {listed(sorted(names))}" for verb, names in (("have", more), ("lack", fewer)) if names]
    reasons += [f"another architecture: its blocks {' and '.join(texts)}"] if texts else []
    norms = [n for n in values if n.endswith(".norm1.weight") and values[n].shape != own[n].shape]
    if norms:
        reasons.append(f"another width: {len(values[norms[0]])}, the model has {len(own[norms[0]])}")
    return reasons


def _blocks(names: Iterable[str]) -> set[int]:
    return {int(found[1]) for name in names if (found := re.match(r"blocks\.(\d+)\.", name))}


def _inside_blocks(names: Iterable[str]) -> set[str]:
    return {name.split(".", 2)[2] for name in names if re.match(r"blocks\.\d+\.", name)}
