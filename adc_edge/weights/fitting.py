"""Weights fitted to a timm model: every tensor of the model comes from the file, or a word says why not.

timm resamples position embeddings and patches and adapts the input channels. A classifier of another class count is
initialised anew. Everything else that is missing, unused, of another shape or not finite is refused by name.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from adc_edge.weights.adapting import adapted, timm_value
from adc_edge.weights.naming import Parts, listed, named_tensors
from adc_edge.weights.reading import read_contents
from adc_edge.weights.refusals import misfit, refuse_infinite, refuse_other_architecture, refuse_other_numbers

logger = logging.getLogger(__name__)

_CLASSIFIERS = ("head", "head_dist")
# What pretraining leaves beside a model, and no classifier needs.
_LEFTOVERS = re.compile(r"(mask_token|decoder\w*|predictor|pooler|pre_logits|head\.(?:mlp|last_layer|proj))(?:\..*)?")


class NamedWeights(NamedTuple):
    """Tensors by timm's names, with where they are from and what was unwrapped to get at them."""

    name: str
    tensors: dict[str, Parts]
    words: list[str]
    metadata: dict[str, str]

    @property
    def classes(self) -> int | None:
        """Classes of the file's classifier; None if it has none that reads one token."""
        width = self.tensors.get("norm.weight", self.tensors.get("fc_norm.weight"))
        head = self.tensors.get("head.weight")
        if head is None or head[0].value.ndim != 2:
            return None
        classes, inputs = head[0].value.shape
        return None if width is not None and [inputs] != list(width[0].value.shape) else classes


class LoadedWeights(NamedTuple):
    """Record of what a model took from its weights; ``metadata`` is a safetensors file's own."""

    name: str
    loaded: int
    total: int
    words: tuple[str, ...]
    unmatched: tuple[str, ...]  # patterns of --allow-missing that nothing matched
    metadata: dict[str, str]
    head_kept: bool  # the classifier is the file's own

    def log(self) -> None:
        """Log the one line about the weights, and the patterns that had no effect."""
        words = f" ({'; '.join(self.words)})" if self.words else ""
        logger.info("weights   %d of %d tensors from %s%s", self.loaded, self.total, self.name, words)
        for pattern in self.unmatched:
            logger.warning("--allow-missing %s matches no tensor that is missing or unused", pattern)


def read_weights(path: Path) -> NamedWeights:
    """Read a weights file under timm's names; raises ModelError for a file that is not one model's weights."""
    contents = read_contents(path)
    return NamedWeights(path.name, *named_tensors(contents.value, f"--weights {path}"), contents.metadata)


def weights_of(vit: nn.Module, name: str) -> NamedWeights:
    """Return the weights of a model that timm has loaded; ``name`` says where from."""
    return NamedWeights(name, *named_tensors(vit.state_dict(), name), {})


def fit_weights(vit: Any, model: str, weights: NamedWeights, allow_missing: Sequence[str] = ()) -> LoadedWeights:
    """Load weights into a VisionTransformer and return what was loaded.

    Args:
        vit: the model, initialised; what the weights do not give keeps these values.
        model: its name in timm.
        weights: tensors by timm's names.
        allow_missing: patterns (fnmatch) of tensors that only one of both has, or that have another shape there.

    Raises:
        ModelError: the weights are another model's, or a tensor is missing, unused, not a float or not finite.
    """
    own: dict[str, Tensor] = vit.state_dict()
    refuse_other_architecture(own, model, list(weights.tensors), weights.name)
    tensors = {n: parts for n, parts in weights.tensors.items() if n in own or not _LEFTOVERS.fullmatch(n)}
    shared = {n: parts for n, parts in tensors.items() if n in own}
    refuse_other_numbers(shared, weights.name)
    values, changes = adapted({n: timm_value(n, parts) for n, parts in shared.items()}, own, vit, "flexi" in model)
    new = _new_classifiers(values, own)
    faults = {n: fault for n, fault in _faults(values, tensors, own).items() if n not in new}
    allowed, unmatched = _allowed(faults.keys() | new, tensors, allow_missing)
    load = {n: value for n, value in values.items() if n not in faults and n not in new}
    if refused := {n: fault for n, fault in faults.items() if n not in allowed or not load}:
        raise misfit(refused, values, tensors, own, model, weights.name)
    refuse_infinite({n: shared[n] for n in load}, weights.name)
    vit.load_state_dict(own | load, strict=True)
    words = [
        *_classifier_words(load, values, own),
        *weights.words,
        *changes,
        *_type_words(shared),
        *_names_word("not used", weights.tensors.keys() - tensors.keys()),
        *_names_word("--allow-missing", allowed & faults.keys()),
    ]
    kept = "head.weight" in load
    return LoadedWeights(weights.name, len(load), len(own), tuple(words), unmatched, weights.metadata, kept)


def _new_classifiers(values: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> set[str]:
    """Return the names of classifiers that start anew: of another size in the file, or absent beside none that is kept.

    A file that has a classifier in part, or one of two, lacks tensors.
    """
    present = {head: {n for n in own if n.startswith(f"{head}.")} for head in _CLASSIFIERS if f"{head}.weight" in own}
    in_file = {head for head, names in present.items() if names & values.keys()}
    weights = {head: f"{head}.weight" for head in in_file if f"{head}.weight" in values}
    other = {head for head, name in weights.items() if values[name].shape != own[name].shape}
    new = present.keys() if in_file == other else other
    return {name for head in new for name in present[head]}


def _faults(values: Mapping[str, Tensor], tensors: Iterable[str], own: Mapping[str, Tensor]) -> dict[str, str]:
    faults = dict.fromkeys([n for n in own if n not in values], "missing")
    faults |= dict.fromkeys([n for n in tensors if n not in own], "not used")
    return faults | {n: "of another shape" for n, value in values.items() if value.shape != own[n].shape}


def _allowed(
    names: set[str], tensors: Mapping[str, Parts], patterns: Sequence[str]
) -> tuple[set[str], tuple[str, ...]]:
    """Return the names that a pattern allows, and the patterns that match none."""
    found = {pattern: {n for n in names if _matches(n, tensors.get(n, ()), pattern)} for pattern in patterns}
    return set().union(*found.values()), tuple(pattern for pattern, matched in found.items() if not matched)


def _matches(name: str, parts: Parts, pattern: str) -> bool:
    return any(fnmatchcase(n, pattern) for n in (name, *(part.name for part in parts)))


def _classifier_words(load: Mapping[str, Tensor], values: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    weights = {head: f"{head}.weight" for head in _CLASSIFIERS if f"{head}.weight" in own}
    states = {head: "kept" if name in load else "new" for head, name in weights.items()}
    if len(set(states.values())) == 1:
        states.pop("head_dist", None)
    words = [f"{head}: {state}, {len(own[weights[head]])} classes" for head, state in states.items()]
    found = values.get("head.weight")
    if found is not None and states.get("head") == "new" and len(found) == len(own["head.weight"]):
        words.append(f"the file's reads {found[0].numel()} features")
    return words


def _type_words(shared: Mapping[str, Parts]) -> list[str]:
    types = sorted({str(part.value.dtype).removeprefix("torch.") for parts in shared.values() for part in parts})
    return [f"from {' and '.join(types)}"] if types != ["float32"] else []


def _names_word(word: str, names: Iterable[str]) -> list[str]:
    """Return ``["word: pooler (2), mask_token"]``, with names counted by their first part; nothing for no names."""
    counts = Counter(
        name if name.startswith(("blocks.", "head.")) else name.partition(".")[0] for name in sorted(names)
    )
    texts = [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]
    return [f"{word}: {listed(texts)}"] if texts else []
