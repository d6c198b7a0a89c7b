"""Contents of a weights file -> tensors under timm's names, and the words for what was done to get there.

Entries and prefixes that training programs put around a model are unwrapped by name. The names of Hugging Face's ViT,
DeiT and DINOv2 and of OpenAI's CLIP are translated by tables. A name that is not in the tables stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from adc_edge.errors import ModelError

# Entries of a checkpoint that hold a model; of several, the first is taken. Averaged weights come first, as with timm.
_ENTRIES = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher", "target_encoder"),
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "backbone", "encoder"),
    "student",
)
_AVERAGED = ("model_ema.", "ema_model.", "ema.", "teacher.", "target_encoder.")  # preferred to what they average
_PREFIX = re.compile(
    r"((?:module|model|net|network|backbone|encoder(?!\.layers?\.\d+\.)|student|model_ema|ema_model|ema|teacher"
    r"|target_encoder|vit|deit|dinov2|dinov2_with_registers|trunk)\.)"
)
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_CLIP_IMAGE = re.compile(r"(?:^|.*\.)visual\.")

Table = list[tuple[str, str]]  # a pattern of a whole name, timm's name; ":q" marks a part of a tensor

_LAYER = r"(?:encoder\.)?layers?\.(\d+)\."
_HUGGING_FACE = [
    (r"embeddings\.(cls_token|mask_token)", r"\1"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (_LAYER + r"attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.(\w+)", r"blocks.\1.attn.qkv.\3:\2"),
    (_LAYER + r"attention\.(?:output\.dense|o_proj)\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"intermediate\.dense\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"output\.dense\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (_LAYER + r"mlp\.(fc1|fc2)\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    (_LAYER + r"(?:layernorm_before|norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
    (_LAYER + r"(?:layernorm_after|norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
    (_LAYER + r"layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.(\w+)", r"norm.\1"),
    (r"(?:cls_)?classifier\.(\w+)", r"head.\1"),
    (r"distillation_classifier\.(\w+)", r"head_dist.\1"),
]
_RESBLOCK = r"transformer\.resblocks\.(\d+)\."
_CLIP = [
    (r"class_embedding", "cls_token"),
    (r"positional_embedding", "pos_embed"),
    (r"conv1\.weight", "patch_embed.proj.weight"),
    (r"ln_pre\.(\w+)", r"norm_pre.\1"),
    (r"ln_post\.(\w+)", r"norm.\1"),
    (r"proj", "head.proj"),
    (_RESBLOCK + r"ln_(\d)\.(\w+)", r"blocks.\1.norm\2.\3"),
    (_RESBLOCK + r"attn\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (_RESBLOCK + r"attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_RESBLOCK + r"mlp\.c_fc\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_RESBLOCK + r"mlp\.c_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
]
_ORIGINAL = [  # Meta's own DeiT III and DINOv2
    (r"blocks\.(\d+)\.gamma_(\d)", r"blocks.\1.ls\2.gamma"),
    (r"register_tokens", "reg_token"),
]
_KINDS = (  # a name that tells the kind, the words for it, its table
    (r"embeddings\.|" + _LAYER + r"attention\.", "Hugging Face names", _HUGGING_FACE),
    (r"class_embedding", "CLIP names", _CLIP),
    (r"", "", _ORIGINAL),
)


class Source(NamedTuple):
    """A tensor as the file has it, with its name there."""

    name: str
    value: Tensor


Parts = tuple[Source, ...]  # one tensor of timm's; three where the file keeps query, key and value apart


def named_tensors(contents: Any, file: str) -> tuple[dict[str, Parts], list[str]]:
    """Return a file's tensors by timm's names, and the words for what was unwrapped, chosen and translated.

    Raises:
        ModelError: the contents hold no tensors in a known place, or two models that no rule tells apart.
    """
    tensors, words = _unwrap_entries(contents, file)
    sources = {_WRAPPERS.sub("", name): Source(name, value) for name, value in tensors.items()}
    words += sorted({f"{found}." for name in tensors for found in _WRAPPERS.findall(name)})
    plain = _strip_prefixes(_image_tower(sources, words), words, file)
    kind, table = next((kind, table) for mark, kind, table in _KINDS if any(re.match(mark, name) for name in plain))
    return _translated(plain, table), [f"unwrapped: {', '.join(words)}"] * bool(words) + [kind] * bool(kind)


def _unwrap_entries(contents: Any, file: str) -> tuple[dict[str, Tensor], list[str]]:
    """Descend through the entries of a checkpoint to the tensors."""
    words: list[str] = []
    while True:
        if not isinstance(contents, Mapping):
            raise ModelError(f"{file} holds a {type(contents).__name__}", "tensors by name", "save a state_dict")
        models = [entry for entry in _ENTRIES if _holds_tensors(contents.get(entry))]
        if not models:
            break
        words.append(", not ".join(models[:2]))
        contents = contents[models[0]]
    tensors = {str(name): value.detach() for name, value in contents.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(
            f"{file} holds no tensors by name: {listed(map(str, contents)) or 'nothing at all'}",
            f"tensors by name, or an entry that holds them: {', '.join(_ENTRIES)}",
            "save the model's state_dict alone",
        )
    return tensors, words


def _holds_tensors(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    return any(isinstance(value, Tensor) for value in entry.values()) or any(
        _holds_tensors(entry.get(e)) for e in _ENTRIES
    )


def _image_tower(sources: dict[str, Source], words: list[str]) -> dict[str, Source]:
    """Return the image half of a CLIP model under its own names; other files come back as they are."""
    if not any(re.search(r"(?:^|\.)visual\.(class_embedding|trunk\.)", name) for name in sources):
        return sources
    image = {_CLIP_IMAGE.sub("", name): source for name, source in sources.items() if _CLIP_IMAGE.match(name)}
    words.append("visual., not the text model" if len(image) < len(sources) else "visual.")
    return image


def _strip_prefixes(sources: dict[str, Source], words: list[str], file: str) -> dict[str, Source]:
    """Take known prefixes off the names; of two sets of one model's weights, keep the averaged one."""
    groups: dict[str, dict[str, Source]] = {}
    for name, source in sources.items():
        prefix, rest = _split_prefix(name)
        groups.setdefault(prefix, {})[rest] = source
    kept: dict[str, Source] = {}
    for prefix in sorted(groups, key=_preference):
        if clashing := kept.keys() & groups[prefix].keys():
            first = next(p for p in groups if p != prefix and clashing & groups[p].keys())
            if _preference(first) == _preference(prefix):
                raise ModelError(
                    f"{file} holds two models: {first or '(no prefix) '}… and {prefix or '(no prefix) '}…",
                    "the weights of one",
                    "save the state_dict of the one that is meant",
                )
            words.append(f"not {prefix or 'the names without it'}")
            continue
        kept |= groups[prefix]
        words += [part for part in _parts(prefix) if part not in words]
    return kept


def _split_prefix(name: str) -> tuple[str, str]:
    start = 0
    while found := _PREFIX.match(name, start):
        start = found.end()
    return name[:start], name[start:]


def _parts(prefix: str) -> list[str]:
    return _PREFIX.findall(prefix)


def _preference(prefix: str) -> int:
    return -sum(part in _AVERAGED for part in _parts(prefix))


def _translated(sources: dict[str, Source], table: Table) -> dict[str, Parts]:
    """Translate names by a table, and join query, key and value."""
    groups: dict[str, dict[str, Source]] = {}
    for name, source in sources.items():
        target, _, part = _translated_name(name, table).partition(":")
        groups.setdefault(target, {})[part] = source
    return {name: parts for target, group in groups.items() for name, parts in _joined(target, group)}


def _translated_name(name: str, table: Table) -> str:
    for pattern, target in table:
        if found := re.fullmatch(pattern, name):
            return found.expand(target)
    return name


def _joined(target: str, group: dict[str, Source]) -> list[tuple[str, Parts]]:
    if set(group) == {""}:
        return [(target, (group[""],))]
    if set(group) == {"q", "k", "v"}:
        return [(target, tuple(group[part] for part in "qkv"))]
    return [(source.name, (source,)) for source in group.values()]  # some part is missing: nothing to join


def listed(names: Iterable[str], most: int = 6) -> str:
    """Return names separated by commas, and how many more there are."""
    shown = list(names)
    more = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {more} more" if more > 0 else "")
