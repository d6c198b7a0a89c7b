"""Measured tables as Markdown, one function a kind (`results_records.py`); `results_page.py` puts them into pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from results_records import (
    BestTable,
    BudgetsTable,
    CasesTable,
    FactorsTable,
    Gap,
    GapsTable,
    Judged,
    JudgedTable,
    LeaksTable,
    Level,
    Pictures,
    StepsTable,
    TotalsTable,
)

from adc_edge.markdown import markdown_table

NONE = "–"
ONE_SEED = "†"
_DEFAULT = "none/pca1:pca0.25"  # of `export`


def steps(table: StepsTable, marks: Sequence[str]) -> str:
    header = ("group", "setting", "seeds", "share %", "accuracy %", "sem", "best %", "MB up", "MB down")
    rows = [
        (
            row.group,
            row.setting + sign,
            str(row.seeds),
            f"{row.share:.3g}",
            spread(row.accuracy, row.deviation),
            NONE if row.sem is None else f"{row.sem:.2f}",
            f"{row.best:.1f}",
            megabytes(row.mb_up),
            megabytes(row.mb_down),
        )
        for row, sign in zip(table.rows, marks, strict=True)
    ]
    return markdown_table(header, [*rows, *_pictures(table)], "llr") + _break_even(table)


def _pictures(table: StepsTable) -> Iterable[Sequence[str]]:
    """Rows of the images as JPEG: their share of the bytes of the whole uncompressed training, and their MB."""
    for one in table.pictures:
        sizes = " / ".join(megabytes(size * table.images / 1e6) for size in one.bytes_an_image)
        yield "pictures", one.name, "", picture_shares(one, table), "", "", "", sizes, "0"


def picture_shares(one: Pictures, table: StepsTable) -> str:
    """Share of the bytes of the whole uncompressed training in %, in each quality."""
    whole = table.epochs * table.uncompressed_bytes
    return " / ".join(f"{100 * size / whole:.3g}" for size in one.bytes_an_image)


def _break_even(table: StepsTable) -> str:
    """The epochs after which the pictures would have been cheaper than the default setting."""
    share = next((row.share for row in table.rows if row.setting == _DEFAULT), None)
    if share is None or not table.pictures:
        return ""
    each = share / 100 * table.uncompressed_bytes
    words = "*pictures*: share of the bytes of the whole uncompressed training. Sent once, they are cheaper than the "
    words += f"default, `{_DEFAULT}` ({each / 1000:.3g} kB an image and epoch), after so many epochs:"
    lines = [
        f"- {one.name}: {' / '.join(f'{size / each:.2g}' for size in one.bytes_an_image)} ({_sizes(one)}; {one.source})"
        for one in table.pictures
    ]
    return "\n\n" + "\n".join([words, "", *lines])


def _sizes(one: Pictures) -> str:
    return f"{_kilobytes(one)} kB an image"


def budgets(table: BudgetsTable, marks: Sequence[str]) -> str:
    header = ("group", "setting", *(f"{budget:g} %" for budget in table.budgets))
    rows = [
        (row.group, row.setting + sign, *map(level, row.levels)) for row, sign in zip(table.rows, marks, strict=True)
    ]
    return markdown_table(header, rows, "llr")


def level(found: Level | None) -> str:
    """Accuracy as ``77.3 ± 0.4``; a star first if the run ended early."""
    if found is None:
        return NONE
    return ("\\*" if found.early else "") + spread(found.accuracy, found.deviation)


def best(table: BestTable, marks: Sequence[str]) -> str:
    header = ("budget", "group", "best setting", "share %", "accuracy %", "n", "tried", "difference", "paired")
    rows = [
        (
            f"up to {row.budget:g} %",
            row.group,
            row.setting + sign,
            f"{row.share:.3g}",
            level(Level(row.accuracy, row.sem, row.early)),
            str(row.seeds),
            str(row.tried),
            _lead(row.difference, row.difference_errors),
            _lead(row.paired, row.paired_errors),
        )
        for row, sign in zip(table.rows, marks, strict=True)
    ]
    return markdown_table(header, rows, "lllr")


def _lead(points: float | None, errors: float | None) -> str:
    return "" if points is None or errors is None else f"{points:+.1f} ({few(errors)} σ)"


def cases(table: CasesTable, marks: Sequence[str]) -> str:
    header = ("", "share %", "accuracy %", "seeds", "difference", "σ")
    rows = [
        (
            row.name + sign,
            f"{row.share:.3g}",
            spread(row.accuracy, row.deviation),
            str(row.seeds),
            "" if row.difference is None else f"{row.difference:+.1f}",
            "" if row.difference_errors is None else f"{row.difference_errors:+.1f}",
        )
        for row, sign in zip(table.rows, marks, strict=True)
    ]
    return markdown_table(header, rows, "lr")


def leaks(table: LeaksTable, marks: Sequence[str]) -> str:
    header = ("setting", "bytes up, %", "images a row", "PSNR, dB", "SSIM")
    rows = [
        (
            row.setting + sign,
            "" if row.share_up is None else f"{row.share_up:.3g}",
            "" if row.images_a_row is None else f"{row.images_a_row:.1f}",
            f"{row.psnr_db:.1f}",
            f"{row.ssim:.3f}",
        )
        for row, sign in zip(table.rows, marks, strict=True)
    ]
    return markdown_table(header, rows, "lr")


def gaps(table: GapsTable, marks: Sequence[str]) -> str:
    rows = []
    for row, sign in zip(table.rows, marks, strict=True):
        share = [] if row.share is None else [f"{row.share:g} %"]
        cells = (_gap(one, table, row.seeds) for one in row.gaps)
        rows.append((row.name + sign, *share, *cells, str(row.seeds)))
    return markdown_table((*table.header, "seeds"), rows, "lr")


def _gap(found: Gap | None, table: GapsTable, row_seeds: int) -> str:
    """The difference, with the seeds that it has where they are not the row's."""
    if found is None:
        return NONE
    sign = "+" if table.signed and found.points else ""
    text = f"{found.points:{sign}.{table.digits}f}" if table.digits else f"{found.points:{sign}g}"
    text += "" if found.sem is None else f" ± {found.sem:.1f}"
    text += "" if found.errors is None else f" ({few(found.errors)} σ)"
    if found.seeds in (None, row_seeds):
        return text
    return f"{text} {ONE_SEED}" if found.seeds == 1 else f"{text} ({found.seeds} seeds)"


def factors(table: FactorsTable, marks: Sequence[str]) -> str:
    rows = [
        (row.name + sign, *("" if one is None else f"{one:.2f}" for one in row.factors))
        for row, sign in zip(table.rows, marks, strict=True)
    ]
    return markdown_table(("", *table.header), rows, "lr")


def judged(table: JudgedTable, marks: Sequence[str]) -> str:
    rows = [
        (
            row.data,
            row.setting + sign,
            str(row.seeds),
            str(row.seeds * row.evaluations),
            f"{row.accuracy:.1f}",
            *(f"{judged_text(one)}; {as_kilobytes(one)}" for one in row.judged),
        )
        for row, sign in zip(table.rows, marks, strict=True)
    ]
    return markdown_table(("", "trained in", "seeds", "evaluations", "accuracy %", *table.precisions), rows, "llr")


def judged_text(one: Judged) -> str:
    """Text as ``+0.1 ± 0.1 (0.6)``: mean difference in points, and the largest of a single evaluation."""
    return f"{round(one.points, 1) + 0.0:+.1f}{'' if one.sem is None else f' ± {one.sem:.1f}'} ({one.largest:.1f})"


def as_kilobytes(one: Judged) -> str:
    return f"{one.bytes_an_image / 1000:.3g} kB"


def totals(table: TotalsTable, marks: Sequence[str]) -> str:
    """Every setting, and below them the images sent once."""
    lines = " / ".join(table.lines)
    header = (
        "setting", "seeds", "accuracy %", "against uncompressed, points", "kB an image, in all steps",
        f"as dear as the JPEGs ({lines}) after epochs",
    )  # fmt: skip
    rows = [
        (
            row.setting + sign,
            str(row.seeds),
            spread(row.accuracy, row.deviation),
            NONE if row.difference is None else _signed(spread(row.difference, row.difference_sem)),
            f"{row.kb_steps:.3g}" if row.kb_steps < 1000 else f"{row.kb_steps:,.0f}",
            " / ".join(NONE if epoch is None else f"{epoch:.2g}" for epoch in row.passes),
        )
        for row, sign in zip(table.rows, marks, strict=True)
    ]
    pictures = [(one.name, "", "", "", _kilobytes(one), "") for one in table.pictures]
    beside = (
        f"{table.epochs:g} epochs unless a row names others, {table.images:,} images. {NONE}: never. Beside the steps: "
        f"an evaluation of {table.evaluated:,} images {table.mb_evaluation:.3g} MB, the first weights of the trunk "
        f"{table.mb_weights:.3g} MB, both once."
    )
    return f"{markdown_table(header, [*rows, *pictures], 'lrrrrr')}\n\n{beside}"


def _signed(points: str) -> str:
    return points if points.startswith("-") else f"+{points}"


def _kilobytes(one: Pictures) -> str:
    return " / ".join(f"{size / 1000:.3g}" for size in one.bytes_an_image)


def spread(value: float, deviation: float | None) -> str:
    """Text as ``77.3 ± 0.4``, the spread only if it is known."""
    return f"{value:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def megabytes(size: float) -> str:
    """Megabytes with three significant digits."""
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"


def few(errors: float) -> str:
    """A number of standard errors with two digits."""
    return f"{errors:.0f}" if errors >= 10 else f"{errors:.1f}"


RENDERERS: dict[type[Any], Callable[[Any, Sequence[str]], str]] = {
    StepsTable: steps,
    BudgetsTable: budgets,
    BestTable: best,
    CasesTable: cases,
    LeaksTable: leaks,
    GapsTable: gaps,
    FactorsTable: factors,
    JudgedTable: judged,
    TotalsTable: totals,
}
