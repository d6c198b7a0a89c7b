"""Bytes of a run besides its steps: the trunk's first weights, and evaluations as `serve` sends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from adc_edge.data.preprocessing import Preprocessing
from adc_edge.defaults import Precision
from adc_edge.evaluation.study.records import Study
from adc_edge.planning.message_sizes import EvaluationMessages, evaluation_messages
from adc_edge.wire.framing import message_bytes
from adc_edge.wire.messages import Evaluate, Evaluated

EvaluationPrecision = Precision | Literal["auto", "central"]
"""``auto``: as `serve` chooses; ``central``: the trainer has the test images (`trainer --data`), nothing is sent."""
_ID = 2**62 + 1  # ids are random 63-bit numbers


class StudyTrunk(NamedTuple):
    """The trunk of a study: N tokens of D channels, bytes of its weights, and the preprocessing of its images."""

    tokens: int
    dim: int
    bytes_weights: int  # of trunk.safetensors in a bundle, fp32
    preprocessing: Preprocessing


class EvaluationBytes(NamedTuple):
    """One evaluation as it is sent; ``precision`` None: it is central."""

    images: int
    messages: int
    precision: Precision | None
    up: int
    down: int


def study_trunk(study: Study) -> StudyTrunk:
    """Make the trunk of a study, with random weights: nothing here depends on their values.

    Raises:
        ModelError: the installed timm cannot make the model.
    """
    from safetensors.torch import save

    from adc_edge.evaluation.study.split_model import study_preprocessing
    from adc_edge.method.split import create_vit, preprocessing, split_vit

    vit = create_vit(study.model, study.model_args, None)
    trunk = split_vit(vit, study.split)[0]
    weights = len(save(trunk.state_dict()))
    return StudyTrunk(trunk.spec.tokens, trunk.spec.embed_dim, weights, study_preprocessing(study, preprocessing(vit)))


def evaluation_bytes(
    trunk: StudyTrunk,
    images: int,
    batch_size: int,
    precision: EvaluationPrecision = "auto",
    training: Precision = "fp32",
) -> EvaluationBytes:
    """Return the bytes of one evaluation, with the messages, frames and precision of `serve`.

    The size of an encoded tensor is a function of its shape, so no image is needed.

    Args:
        trunk: of the study.
        images: test images that are judged.
        batch_size: images of a training step.
        precision: of the activations, or who evaluates.
        training: precision of the activations in training, by which ``auto`` chooses.
    """
    if precision == "central":
        return EvaluationBytes(images, 0, None, 0, 0)
    chosen = None if precision == "auto" else precision
    sent = evaluation_messages(trunk.tokens, trunk.dim, images, batch_size, chosen, training)
    up, down = _sent(sent), _answered(sent.images)
    return EvaluationBytes(images, len(sent.images), sent.precision, up, down)


def _sent(sent: EvaluationMessages) -> int:
    messages = enumerate(zip(sent.images, sent.body_bytes, strict=True))
    return sum(
        message_bytes(Evaluate(_ID, 0, part, _ID, body, images, sent.precision), body)
        for part, (images, body) in messages
    )


def _answered(parts: Sequence[int]) -> int:
    return sum(message_bytes(Evaluated(_ID, 0, part, n, n // 2, 0.5 * n, 0.1), 0) for part, n in enumerate(parts))
