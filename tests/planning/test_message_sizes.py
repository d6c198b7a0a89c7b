"""The division of an evaluation into messages, and its precision."""

from __future__ import annotations

import pytest

from adc_edge.defaults import Precision
from adc_edge.planning.message_sizes import evaluation_images, evaluation_messages, evaluation_precision


@pytest.mark.parametrize(
    ("tokens", "dim", "batch_size", "most", "images"),
    [
        (197, 192, 32, 1024, 83),  # 16,384 tokens
        (17, 192, 32, 1024, 963),
        (17, 32, 32, 256, 256),  # the trainer's bound
        (197, 1024, 8, 1024, 20),  # 16 MiB in fp32
        (197, 192, 128, 1024, 128),  # never less than a step's
    ],
)
def test_a_message_of_an_evaluation_has_many_images(
    tokens: int, dim: int, batch_size: int, most: int, images: int
) -> None:
    assert evaluation_images(tokens, dim, batch_size, most) == images


@pytest.mark.parametrize(("rows", "precision"), [(8 * 192 - 1, "int8"), (8 * 192, "pca4")])
def test_few_rows_do_not_bear_their_principal_components(rows: int, precision: str) -> None:
    assert evaluation_precision(rows, 192, "fp32") == precision


@pytest.mark.parametrize(
    ("training", "precision"),
    [
        *((precision, precision) for precision in ("pca4", "pca2", "pca1.5", "pca1")),
        *((precision, "pca1") for precision in ("pca0.75", "pca0.5", "pca0.0625")),
        *((precision, precision) for precision in ("dct2", "dct1")),
        *((precision, "dct1") for precision in ("dct0.75", "dct0.25", "dct0.0625")),
        *((precision, "pca4") for precision in ("fp32", "bf16", "fp16", "int8", "int4", "int2")),
    ],
)
def test_a_head_is_evaluated_in_the_principal_components_that_it_learns_from_of_a_bit_or_more(
    training: Precision, precision: Precision
) -> None:
    assert evaluation_precision(8 * 192, 192, training) == precision
    assert evaluation_precision(8 * 192 - 1, 192, training) == "int8"


def test_the_messages_of_an_evaluation_have_the_precision_of_training_unless_another_is_named() -> None:
    by_training = evaluation_messages(197, 192, 1000, 32, None, "pca0.5")
    assert by_training.precision == "pca1"
    assert sum(by_training.body_bytes) == pytest.approx(1000 * 197 * 192 / 8, rel=0.001)
    assert evaluation_messages(197, 192, 1000, 32, "pca2", "pca0.5").precision == "pca2"
    assert evaluation_messages(197, 192, 1000, 32, None).precision == "pca4"
