"""Contents of a weights file -> tensors under timm's names, and the words for what was done to get there.

Entries and prefixes that training programs put around a model are unwrapped by name. The names of Hugging Face's ViT,
DeiT and DINOv2 and of OpenAI's CLIP are translated by tables. A name that is not in the tables stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
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
# Entries that training programs save beside a model.
_TRAINING = re.compile(
    r".*(?:optim|sched|scaler|loss|criterion|rng|random_state|_metrics|callback|sampler|history|config|hyper_?param|hparam).*"
    r"|opt|amp|args|cfg|metrics|loops|epoch|step|MixedPrecision"
)
_CLASSIFIER = re.compile(r"(?:.*\.)?(?:head|head_dist|fc|(?:cls_|distillation_)?classifier)\.weight")
_IN_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?|resblocks)\.\d")
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
        ModelError: the contents hold no tensors in a known place, two models that no rule tells apart, or a classifier
            only in the one that is not preferred.
    """
    tensors, beside, words = _unwrap_entries(contents, file)
    sources = _by_name(((_WRAPPERS.sub("", name), Source(name, value)) for name, value in tensors.items()), file)
    words += sorted({f"{found}." for name in tensors for found in _WRAPPERS.findall(name)})
    plain = _strip_prefixes(_image_tower(sources, words, file), words, file)
    extra = [(name, Source(name, value)) for name, value in beside.items()]
    plain = _by_name([*plain.items(), *extra], file)
    kind, table = next((kind, table) for mark, kind, table in _KINDS if any(re.match(mark, name) for name in plain))
    return _translated(plain, table, file), [f"unwrapped: {', '.join(words)}"] * bool(words) + [kind] * bool(kind)


def _by_name(sources: Iterable[tuple[str, Source]], file: str) -> dict[str, Source]:
    """Return tensors by name; two of one name are refused, for one of them would be lost."""
    found: dict[str, Source] = {}
    for name, source in sources:
        if name in found:
            both = f"{found[name].name} and {source.name} are both {name}"
            raise _two_models(file, both if found[name].name != source.name else f"{name} is there twice")
        found[name] = source
    return found


def _two_models(file: str, what: str) -> ModelError:
    return ModelError(
        f"{file} holds two models: {what}", "the weights of one", "save the state_dict of the one that is meant"
    )


def _unwrap_entries(contents: Any, file: str) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Descend through the entries of a checkpoint to the tensors; return also those beside the entries, and the words.

    A classifier may lie beside its model. What no model takes is refused later, by name.
    """
    words: list[str] = []
    beside: dict[str, Tensor] = {}
    while True:
        if not isinstance(contents, Mapping):
            raise ModelError(f"{file} holds a {type(contents).__name__}", "tensors by name", "save a state_dict")
        entries = [entry for entry in _ENTRIES if dict(_flat(contents.get(entry)))]
        models = [entry for entry in entries if _holds_tensors(contents[entry])]
        if not models:
            break
        _refuse_lost_classifier({entry: dict(_flat(contents[entry])) for entry in entries}, models[0], file)
        words.append(", not ".join([models[0], *(entry for entry in entries if entry != models[0])]))
        beside |= _besides(contents, _ENTRIES, words)
        contents = contents[models[0]]
    tensors = {str(name): value.detach() for name, value in contents.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(
            f"{file} holds no tensors by name: {listed(map(str, contents)) or 'nothing at all'}",
            f"tensors by name, or an entry that holds them: {', '.join(_ENTRIES)}",
            "save the model's state_dict alone",
        )
    return tensors, beside | _besides(contents, tensors, words), words


def _besides(contents: Mapping[Any, Any], known: Iterable[str], words: list[str]) -> dict[str, Tensor]:
    """Return the tensors in all but the known entries, and add the entries that have some to the words."""
    known = set(known)
    found = dict(_flat({entry: value for entry, value in contents.items() if str(entry) not in known}))
    words += dict.fromkeys(name.partition(".")[0] for name in found)
    return found


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested entries with their dotted names, without single numbers and states of training."""
    if isinstance(value, Tensor):
        if value.ndim:
            yield name, value.detach()
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list | tuple) else ())
    for entry, inner in items:
        if isinstance(inner, Tensor | Mapping | list | tuple) and not _TRAINING.fullmatch(str(entry)):
            yield from _flat(inner, f"{name}.{entry}" if name else str(entry))


def _refuse_lost_classifier(models: Mapping[str, Iterable[str]], taken: str, file: str) -> None:
    """Refuse to take a model without a classifier in place of one that has it."""
    having = [model for model, names in models.items() if any(map(_is_classifier, names))]
    if having and taken not in having:
        raise ModelError(
            f"{file} has a classifier in {having[0] or 'the names without prefix'}, but none in {taken}",
            f"a classifier also in {taken}, which is preferred",
            "save the state_dict of the one that is meant",
        )


def _is_classifier(name: str) -> bool:
    return bool(_CLASSIFIER.fullmatch(name)) and not _IN_BLOCK.search(name)


def _holds_tensors(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    return any(isinstance(value, Tensor) and value.ndim for value in entry.values()) or any(
        _holds_tensors(entry.get(e)) for e in _ENTRIES
    )


def _image_tower(sources: dict[str, Source], words: list[str], file: str) -> dict[str, Source]:
    """Return the image half of a CLIP model under its own names; other files come back as they are."""
    if not any(re.search(r"(?:^|\.)visual\.(class_embedding|trunk\.)", name) for name in sources):
        return sources
    found = ((_CLIP_IMAGE.sub("", name), source) for name, source in sources.items() if _CLIP_IMAGE.match(name))
    image = _by_name(found, file)
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
                raise _two_models(file, f"{first or '(no prefix) '}… and {prefix or '(no prefix) '}…")
            _refuse_other_classifier(groups, file)
            words.append(f"not {prefix or 'the names without it'}")
            continue
        kept |= groups[prefix]
        words += [part for part in _parts(prefix) if part not in words]
    return kept


def _refuse_other_classifier(groups: Mapping[str, Iterable[str]], file: str) -> None:
    """Refuse averaged weights without a classifier beside plain ones that have it."""
    preferred = min(groups, key=_preference)
    models: dict[str, list[str]] = {}
    for prefix, names in groups.items():
        same = _preference(prefix) == _preference(preferred)
        models.setdefault(preferred if same else prefix, []).extend(names)
    _refuse_lost_classifier(models, preferred, file)


def _split_prefix(name: str) -> tuple[str, str]:
    start = 0
    while found := _PREFIX.match(name, start):
        start = found.end()
    return name[:start], name[start:]


def _parts(prefix: str) -> list[str]:
    return _PREFIX.findall(prefix)


def _preference(prefix: str) -> int:
    return -sum(part in _AVERAGED for part in _parts(prefix))


def _translated(sources: dict[str, Source], table: Table, file: str) -> dict[str, Parts]:
    """Translate names by a table, and join query, key and value."""
    groups: dict[str, dict[str, Source]] = {}
    named = _by_name(((_translated_name(name, table), source) for name, source in sources.items()), file)
    for name, source in named.items():
        target, _, part = name.partition(":")
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
