"""Table of the parity report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from adc_edge.export.parity import PARITY_LIMITS, ParityRow

_COLUMNS = ("stage", "B", "T", "k", "scores", "hidden", "clusters", "assigned", "tokens", "activations", "")


def parity_table(rows: Sequence[ParityRow]) -> Table:
    """Return a table with one row per case: its sizes, and the differences of scores, states, choices, activations."""
    limits = ", ".join(f"{PARITY_LIMITS[c].difference:.0e} in {c}" for c in dict.fromkeys(row.compute for row in rows))
    table = Table(
        title="ONNX Runtime against PyTorch",
        caption=f"Differences (of scores, hidden states, activations): at most {limits} of the largest value. "
        "clusters: against PyTorch on the graph's own scores. assigned, tokens: against PyTorch, end to end.",
    )
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for row in rows:
        mark = "[green]✓[/]" if row.passed else "[red]✗[/]"
        counts = (str(row.images), str(row.clusters), str(row.kept))
        stage = row.stage if row.compute == "fp32" else f"{row.stage}, {row.compute}"
        table.add_row(
            stage,
            *counts,
            f"{row.scores:.0e}",
            f"{row.hidden:.0e}",
            "exact" if row.clustering else "[red]differ[/]",
            f"{row.assignment:.1%}",
            f"{row.tokens:.1%}",
            f"{row.difference:.0e}",
            mark,
        )
    return table
