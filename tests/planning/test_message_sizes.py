"""The division of an evaluation into messages, and its precision."""

from __future__ import annotations

import pytest

from adc_edge.planning.message_sizes import evaluation_images, evaluation_precision


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
    assert evaluation_precision(rows, 192) == precision
