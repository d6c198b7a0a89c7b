"""Tells a supervisor of trainer ranks about wrong use: torchrun's exit code is 1 whatever its ranks end with.

The supervisor (deploy/ranks.sh, the Slurm job) makes an empty file and exports its path. Wrong use is written there,
and ranks that are at work remove the file: what fails after them has worked once, and may work again.
"""

from __future__ import annotations

import os
from contextlib import suppress

WRONG_USE = "ADC_EDGE_WRONG_USE"  # environment variable: path of the file


def note_wrong_use(text: str) -> None:
    """Tell the supervisor, if there is one, what its user has to mend. Its first line is written."""
    with suppress(OSError), open(os.environ.get(WRONG_USE, ""), "r+", encoding="utf-8") as file:  # it is not made anew
        file.seek(0, os.SEEK_END)
        file.write(text.partition("\n")[0] + "\n")


def note_at_work() -> None:
    """Tell the supervisor, if there is one, that its arguments are of use."""
    with suppress(OSError):
        os.unlink(os.environ.get(WRONG_USE, ""))
