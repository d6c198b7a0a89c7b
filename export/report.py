"""The parity report as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from adc_edge.export.parity import TOLERANCE, Row


def parity_table(rows: Sequence[Row]) -> Table:
    """One line a case: what was run, how alike the choices were, how far the activations lay apart."""
    table = Table(title=f"ONNX Runtime against PyTorch (tolerance {TOLERANCE:.0e} of the largest activation)")
    for name in ("stage", "B", "T", "k", "same assignment", "max difference", ""):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in rows:
        mark = "[green]✓[/]" if row.passed else "[red]✗[/]"
        counts = (str(row.images), str(row.clusters), str(row.kept))
        table.add_row(row.stage, *counts, f"{row.agreement:.1%}", f"{row.difference:.1e}", mark)
    return table
