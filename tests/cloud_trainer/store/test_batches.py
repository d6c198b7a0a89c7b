"""Batches of steps without the device: each row once in a pass, the same after a restart, each pass in its order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.store.batches import MIXED_STEPS, StoredBatches, order_of_pass
from adc_edge.cloud_trainer.store.seal import StoreSeal
from adc_edge.cloud_trainer.store.session_store import SessionStore
from adc_edge.method.token_augmentation import NO_AUGMENTATION, TokenAugmentation
from adc_edge.storage.bundle import Bundle
from tests.cloud_trainer.store.messages import KEPT, ROWS, step

SENT = 2 * MIXED_STEPS + 3


@pytest.fixture
def store(bundle: Bundle, tmp_path: Path) -> SessionStore:
    """A store of SENT steps of two micro-batches."""
    store = SessionStore(tmp_path / "s", 1, StoreSeal())
    for number in range(SENT):
        for micro_batch in range(2):
            store.keep_step(*step(bundle, number, micro_batch))
    return store


def batches_of(
    store: SessionStore, bundle: Bundle, seed: int = 0, augmentation: TokenAugmentation = NO_AUGMENTATION
) -> StoredBatches:
    return StoredBatches(store, range(SENT), bundle.manifest, torch.device("cpu"), seed, augmentation)


def rows_of(batches: StoredBatches, number: int) -> list[int]:
    """The rows of a step, as their activations tell them."""
    return [int(row) for batch in batches.step(number) for row in batch.activations[:, 0, 0]]


def test_the_first_steps_are_as_they_came(store: SessionStore, bundle: Bundle) -> None:
    batches = batches_of(store, bundle, augmentation=TokenAugmentation(0.5, 1.0))
    assert rows_of(batches, 5) == [*range(500, 500 + ROWS), *range(510, 510 + ROWS)]
    assert batches.step(5)[0].activations.shape == (ROWS, KEPT, bundle.manifest.dim)


def test_every_pass_has_each_row_once_with_its_label(store: SessionStore, bundle: Bundle) -> None:
    batches = batches_of(store, bundle)
    everything = sorted(row for number in range(SENT) for row in rows_of(batches, number))
    passes = []
    for one_pass in (1, 2):
        found = []
        for number in range(one_pass * SENT, (one_pass + 1) * SENT):
            for batch in batches.step(number):
                rows = batch.activations[:, 0, 0].numpy()
                labels = (rows.astype(int) % 10 + rows.astype(int) // 100) % 10
                assert batch.soft.argmax(axis=1).tolist() == labels.tolist()
                assert (len(batch.soft), batch.images) == (ROWS, ROWS)
                found += rows.astype(int).tolist()
        assert sorted(found) == everything
        passes.append(found)
    assert passes[0] != passes[1]


def test_passes_begin_with_the_first_step_that_is_kept(store: SessionStore, bundle: Bundle) -> None:
    """Steps before it were sent by a trunk that still learned, and are in no pass."""
    first = 5
    batches = StoredBatches(store, range(first, SENT), bundle.manifest, torch.device("cpu"), 0)
    everything = sorted(row for number in range(first, SENT) for row in rows_of(batches, number))
    assert rows_of(batches, first) == [*range(500, 500 + ROWS), *range(510, 510 + ROWS)]
    kept, passes = SENT - first, []
    for begin in (SENT, SENT + kept):
        passes.append([row for number in range(begin, begin + kept) for row in rows_of(batches, number)])
        assert sorted(passes[-1]) == everything
    assert passes[0] != passes[1]


def test_tokens_and_labels_are_exchanged_anew_in_each_step_that_the_device_does_not_send(
    store: SessionStore, bundle: Bundle
) -> None:
    plain, mixed = batches_of(store, bundle), batches_of(store, bundle, augmentation=TokenAugmentation(mix=1.0))
    for number in range(SENT):
        for a, b in zip(plain.step(number), mixed.step(number), strict=True):
            assert torch.equal(a.activations, b.activations)
    shares = []
    for number in range(SENT, 2 * SENT):
        for a, b in zip(plain.step(number), mixed.step(number), strict=True):
            assert (b.images, b.message) == (a.images, a.message)
            np.testing.assert_allclose(b.soft.sum(axis=0), a.soft.sum(axis=0), atol=1e-5)
            shares.append(float(np.abs(b.soft - a.soft).max()))
    assert len(set(shares)) > KEPT // 2


def test_rows_of_several_messages_meet_in_a_step(store: SessionStore, bundle: Bundle) -> None:
    assert len({row // 100 for row in rows_of(batches_of(store, bundle), SENT)}) > 2


@pytest.mark.parametrize("augmentation", [TokenAugmentation(drop=0.4), TokenAugmentation(mix=1.0)])
def test_a_step_is_the_same_after_a_restart_and_with_another_seed_it_is_not(
    augmentation: TokenAugmentation, store: SessionStore, bundle: Bundle
) -> None:
    steps = range(SENT, 2 * SENT)
    batches = batches_of(store, bundle, augmentation=augmentation)
    for number in steps:
        once, again = batches.step(number), batches_of(store, bundle, augmentation=augmentation).step(number)
        for a, b in zip(once, again, strict=True):
            assert torch.equal(a.activations, b.activations)
            assert np.array_equal(a.soft, b.soft)
    assert [rows_of(batches_of(store, bundle, seed=1), n) for n in steps] != [rows_of(batches, n) for n in steps]


def test_groups_are_smaller_where_messages_are_large(store: SessionStore, bundle: Bundle) -> None:
    """The bytes of a group are bounded, and each row still comes once in a pass."""
    one_step = 2 * ROWS * KEPT * bundle.manifest.dim * 4
    everything = sorted(row for number in range(SENT) for row in rows_of(batches_of(store, bundle), number))
    for room, steps in ((0, 1), (3 * one_step + 1, 3), (100 * one_step, MIXED_STEPS)):
        batches = StoredBatches(store, range(SENT), bundle.manifest, torch.device("cpu"), 0, group_bytes=room)
        found = []
        for number in range(SENT, 2 * SENT):
            found += rows_of(batches, number)
            assert batches.held_bytes <= steps * one_step
        assert batches.mixed_steps == steps
        assert sorted(found) == everything
        batches.release()
        assert batches.held_bytes == 0


def test_an_order_is_a_permutation() -> None:
    assert sorted(order_of_pass(3, 1, 50)) == list(range(50))
    assert order_of_pass(3, 1, 50).tolist() != order_of_pass(3, 2, 50).tolist()


def test_the_order_of_the_patch_tokens_means_nothing_to_the_head(training: HeadTraining, bundle: Bundle) -> None:
    """So no swap of columns would augment anything: a token's place is in the token."""
    torch.manual_seed(0)
    z = torch.randn(3, bundle.manifest.tokens, bundle.manifest.dim)
    patches = torch.randperm(bundle.manifest.tokens - bundle.manifest.prefix) + bundle.manifest.prefix
    other = z[:, torch.cat([torch.arange(bundle.manifest.prefix), patches])]
    torch.testing.assert_close(training.logits(z), training.logits(other))
