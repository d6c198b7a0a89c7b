"""The class names that a bundle gets: from ``--classes``, from the weights file, or ImageNet's own."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from safetensors import SafetensorError, safe_open
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models.vision_transformer import VisionTransformer

from adc_edge.data.classes import composed_names, short_list
from adc_edge.data.sources import load_dataset
from adc_edge.errors import DataError, SettingError

CLASS_NAMES = "class_names"  # in a weights file's metadata: a JSON list, written by `merge`
_LAYOUT = "a text file of one name a line, a JSON list of names, or a data source with class directories"

logger = logging.getLogger(__name__)


def read_class_names(text: str) -> list[str]:
    """Return the names that ``--classes FILE|SRC`` gives, in the order of the head's outputs.

    Raises:
        SettingError: there is no such file, or it is no list of names.
        DataError: the data source cannot be read, has no names, or a name is empty or there twice.
    """
    path = Path(text)
    if path.is_file():
        names = _names_of_file(path)
    elif text == "digits" or ":" in text:
        dataset = load_dataset(text)
        if not dataset.named:
            raise DataError(f"{text} has no class names", "an array `classes`", "add it to the .npz, or name a file")
        names = list(dataset.classes)
    else:
        raise SettingError(f"--classes {text}: no such file", _LAYOUT, "check the path")
    return composed_names(names, f"--classes {text}")


def check_number(names: list[str], classes: int | None) -> int | None:
    """Return the number of classes; raises SettingError if ``--num-classes`` differs from the number of names."""
    if names and classes not in (None, len(names)):
        raise SettingError(
            f"--num-classes {classes} and {len(names)} names in --classes",
            "one name for each class",
            "leave --num-classes out",
        )
    return len(names) or classes


def keeps_classifier(vit: VisionTransformer, weights: Path | None, pretrained: bool) -> bool:
    """Return whether a model's classifier is the one of its weights, and not initialised anew."""
    if weights is not None and weights.suffix == ".safetensors":
        try:
            with safe_open(weights, framework="pt") as file:
                return bool((file.get_tensor("head.weight") == vit.head.weight).all())
        except (OSError, SafetensorError, RuntimeError, AttributeError):  # other names or sizes, or no classifier
            return False
    return (pretrained or weights is not None) and vit.num_classes == vit.pretrained_cfg.get("num_classes")


def names_of_weights(vit: VisionTransformer, weights: Path | None) -> list[str]:
    """Return the class names of a classifier that was kept, if the file or timm knows them for certain; else none."""
    names = [] if weights is None else _names_of_metadata(weights)
    if names:
        logger.info("classes  from %s: %s", weights, short_list(names))
        return names if len(names) <= vit.num_classes else []
    config = vit.pretrained_cfg
    if vit.num_classes == config.get("num_classes") and "in1k" in (config.get("tag") or ""):
        subset = infer_imagenet_subset(dict(config))
        if subset == "imagenet-1k":
            names = list(ImageNetInfo(subset).label_names())
            logger.info("classes  ImageNet-1k's WordNet ids, as the weights have them: %s", short_list(names, 2))
    return names


def _names_of_file(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
        is_json = text.lstrip().startswith("[")
        names = json.loads(text) if is_json else [line.strip() for line in text.strip().splitlines()]
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are of this kind
        raise SettingError(f"--classes {path}: {error}", f"{_LAYOUT}, in UTF-8", "mend the file") from None
    except OSError as error:
        raise SettingError(f"--classes {path}: {error.strerror}", _LAYOUT, "check the path") from None
    if not names or not all(isinstance(name, str) for name in names):
        raise SettingError(f"--classes {path}: no list of names", _LAYOUT, "mend the file")
    return names


def _names_of_metadata(weights: Path) -> list[str]:
    try:
        with safe_open(weights, framework="numpy") as file:
            names = json.loads((file.metadata() or {}).get(CLASS_NAMES, "[]"))
    except (OSError, SafetensorError, ValueError):  # a file of another kind, or another tool's metadata
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
