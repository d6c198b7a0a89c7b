"""`serve --plan auto` over an emulated link that becomes slow and fast again."""

from __future__ import annotations

import pytest
from follow import CHANGES, FOLLOWED_STEPS, running
from link_emulator import available

pytestmark = [pytest.mark.slow, pytest.mark.timed]
WITHIN_STEPS = 10


@pytest.mark.skipif(available() is not None, reason=available() or "")
def test_a_link_that_falls_and_recovers_is_followed_within_ten_steps_and_no_step_is_lost() -> None:
    with running() as runs:
        lines = runs.run(CHANGES, 40.0, FOLLOWED_STEPS, plan="auto")
    steps = [line for line in lines if line["kind"] == "step"]
    changes = [line["step"] for line in lines if line["kind"] == "plan"]
    assert [line["step"] for line in steps] == list(range(len(CHANGES) * FOLLOWED_STEPS))
    assert all(step % FOLLOWED_STEPS <= WITHIN_STEPS for step in changes), changes
    slow = steps[2 * FOLLOWED_STEPS - 1]
    assert slow["bytes_up"] + slow["bytes_down"] < 60_000, changes  # principal components, whatever was sent before
