"""The class names that a bundle gets: from ``--classes``, from the weights file, or ImageNet's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adc_edge.data.classes import composed_names, short_list
from adc_edge.data.sources import load_dataset
from adc_edge.errors import DataError, SettingError

if TYPE_CHECKING:  # timm imports torch, which takes seconds; a wrong --classes is told before
    from timm.models.vision_transformer import VisionTransformer

    from adc_edge.weights.fitting import LoadedWeights

CLASS_NAMES = "class_names"  # in a weights file's metadata: a JSON list, written by `merge`
_LAYOUT = "a text file of one name a line, a JSON list of names, or a data source with class directories"

_IMAGENET = "imagenet-1k"

logger = logging.getLogger(__name__)


def read_class_names(text: str) -> list[str]:
    """Return the names that ``--classes FILE|SRC`` gives, in the order of the head's outputs.

    Raises:
        SettingError: there is no such file, or it is no list of names.
        DataError: the data source cannot be read, has no names, or a name is empty or there twice.
    """
    path = Path(text)
    if text == _IMAGENET:
        names = _imagenet_names()
    elif path.is_file():
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


def names_of_weights(vit: VisionTransformer, loaded: LoadedWeights | None, from_hub: bool) -> list[str]:
    """Return the class names of a classifier that was kept, if the file or timm's hub tells them; else none.

    Raises:
        DataError: the file's metadata names the classes, and a name is empty, there twice, or one too many.
    """
    if loaded is None or not loaded.head_kept:
        return []
    if names := _names_of_metadata(loaded.metadata):
        names = composed_names(names, loaded.name)
        if len(names) > vit.num_classes:
            received = f"{loaded.name}: {len(names)} class names for {vit.num_classes} outputs"
            raise DataError(received, "one name for each output at most", "give the names with --classes FILE")
        logger.info("classes   from %s: %s", loaded.name, short_list(names))
        return names
    config = vit.pretrained_cfg
    if vit.num_classes != config.get("num_classes") or "in1k" not in (config.get("tag") or ""):
        return []
    if not from_hub:  # anybody's classifier may have 1000 classes
        logger.info("classes   not named by the file; if it is ImageNet-1k's classifier, add --classes %s", _IMAGENET)
        return []
    logger.info("classes   ImageNet-1k's WordNet ids, as timm's weights have them")
    return _imagenet_names()


def _imagenet_names() -> list[str]:
    from timm.data import ImageNetInfo

    return list(ImageNetInfo(_IMAGENET).label_names())


def _names_of_file(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
        is_json = text.lstrip().startswith(("[", "{"))
        names = json.loads(text) if is_json else [line.strip() for line in text.strip().split("\n") if text.strip()]
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are of this kind
        raise SettingError(f"--classes {path}: {error}", f"{_LAYOUT}, in UTF-8", "mend the file") from None
    except OSError as error:
        raise SettingError(f"--classes {path}: {error.strerror}", _LAYOUT, "check the path") from None
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SettingError(f"--classes {path}: no list of names", _LAYOUT, "mend the file")
    return names


def _names_of_metadata(metadata: Mapping[str, str]) -> list[str]:
    try:
        names = json.loads(metadata.get(CLASS_NAMES, "[]"))
    except ValueError:  # another tool's metadata
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
