"""The tables of docs/results.md and docs/results/*.md, written from the records in docs/results/*.json.

    python benchmarks/results_page.py                                   # write all tables anew
    python benchmarks/results_page.py --take study/ --into cifar10-64px --name again --machine "2 cores of x86"

A table stands between `<!-- results_page.py: FILE/TABLE -->` and `<!-- end -->`. ``--take`` first puts the rows of a
study of `adc-edge evaluate` into a file of records, in place of rows of the same settings.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from privacy_front import front_table, preset_table
from results_records import RESULTS, BestRow, BestTable, Records, Source, StepsTable, read_records
from results_tables import NONE, ONE_SEED, RENDERERS, picture_shares
from results_taking import take_study, version_of
from results_totals import add_totals, take_totals

from adc_edge.errors import SettingError
from adc_edge.files import write_atomic
from adc_edge.markdown import markdown_table

DOCS = RESULTS.parent
OLD = "0.5"  # a version whose rows are marked
OLD_VERSION = "‡"
_BLOCK = re.compile(r"(<!-- results_page\.py: (?P<name>[\w./-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FRONT_GROUPS = ("adc-edge", "ADC, the paper's", "plain quantization", "Top-K", "BottleNet++")


def rendered(name: str, directory: Path = RESULTS) -> str:
    """The Markdown of a block.

    Args:
        name: FILE/TABLE, or a table of another file: ``front``, ``fleets``, ``privacy-front``, ``privacy-preset``.
        directory: holds the files of records.

    Raises:
        SettingError: no such file or table.
    """
    if name == "front":
        return front(read_records("cifar10-224px", directory))
    if name == "fleets":
        return fleets(directory / "fleets.json")
    if name == "privacy-front":
        return front_table(directory)
    if name == "privacy-preset":
        return preset_table(directory)
    file, _, key = name.partition("/")
    records = read_records(file, directory)
    if key not in records.tables:
        raise SettingError(f"a block {name}", f"one of {', '.join(records.tables)}", f"mend it, or {file}.json")
    table = records.tables[key]
    text = RENDERERS[type(table)](table, [mark(row, records) for row in table.rows])
    return text + legend(text, records.sources_of(table))


def mark(row: Any, records: Records) -> str:
    """The marks of a row that rests on one seed, or on version 0.5; with a space before them."""
    marks = [ONE_SEED] if row.seeds == 1 else []
    marks += [OLD_VERSION] if records.sources[row.source].version.startswith(f"{OLD}.") else []
    return "".join(f" {one}" for one in marks)


def legend(text: str, sources: Sequence[Source]) -> str:
    """The meaning of the marks in a table's text, and the versions and machines that measured it."""
    meanings = {ONE_SEED: "one seed", OLD_VERSION: f"measured by version {OLD}"}
    told = [f"{sign}: {meaning}." for sign, meaning in meanings.items() if sign in text]
    used = dict.fromkeys((one.version, one.machine) for one in sources)
    told.append("; ".join(f"Version {version}, {machine}" for version, machine in used) + ".")
    return f"\n\n{' '.join(told)}"


def front(records: Records) -> str:
    """The first page's table: the best setting of each group within each budget after equal steps, and pictures."""
    table = records.tables["best-steps"]
    assert isinstance(table, BestTable)
    found = {(row.budget, row.group): row for row in table.rows}
    budgets = dict.fromkeys(row.budget for row in table.rows)
    rows = [
        (f"up to {budget:g} %", *(_front_cell(found.get((budget, group))) for group in _FRONT_GROUPS))
        for budget in budgets
    ]
    rows += [(line, *("" for _ in _FRONT_GROUPS)) for line in picture_lines(records)]
    names = ["adc-edge", "ADC, the paper's", *_FRONT_GROUPS[2:]]
    return markdown_table(("of the uncompressed bytes", *names), rows, "r")


def picture_lines(records: Records) -> list[str]:
    """The images sent once: their share of the bytes of the whole uncompressed training, and what they are."""
    steps = records.tables["steps"]
    assert isinstance(steps, StepsTable)
    return [f"{picture_shares(one, steps)} %: {one.name}" for one in steps.pictures]


def _front_cell(row: BestRow | None) -> str:
    return NONE if row is None else f"{row.accuracy:.1f} ± {row.sem:.1f}"


def fleets(path: Path) -> str:
    """The table of all fleets of a study's results.json, with its caption."""
    import pandas as pd

    from adc_edge.evaluation.report.fleet_table import fleets_sheet
    from adc_edge.evaluation.report.tables import study_markdown
    from adc_edge.evaluation.report.views import Views

    rows = pd.DataFrame(msgspec.json.decode(path.read_bytes())["fleets"])
    sheet = fleets_sheet(Views((), pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), fleets=rows))
    return study_markdown([sheet]).partition("\n\n")[2].strip()


def pages(docs: Path = DOCS) -> dict[Path, str]:
    """The pages with a block, and their text as it has to be; raises SettingError for an unknown block."""
    found = {path: path.read_text() for path in [docs / "results.md", *sorted((docs / "results").glob("*.md"))]}
    return {
        path: _BLOCK.sub(lambda m: f"{m[1]}{rendered(m['name'], docs / 'results')}\n{m[3]}", text)
        for path, text in found.items()
        if _BLOCK.search(text)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", type=Path, metavar="STUDY", help="The -o directory of an evaluation.")
    parser.add_argument("--into", metavar="FILE", help="The file of records that its rows go into, without .json.")
    parser.add_argument(
        "--totals", metavar="TABLE", help="Write this table of whole trainings of FILE instead of rows."
    )
    parser.add_argument("--against", type=Path, metavar="STUDY", help="Add to TABLE; compare with this one's `none`.")
    parser.add_argument("--label", help="What differs in the rows that are added, its epochs first: 40 epochs.")
    parser.add_argument("--name", help="The name of the measurement in the file.")
    parser.add_argument("--machine", help="The machine that made it, in words.")
    parser.add_argument("--command", help="The command that made it.")
    parser.add_argument("--version", help="The version that made it; default: that of the study's runs.")
    asked = parser.parse_args()
    if (asked.against is None) != (asked.label is None) or (asked.against is not None and asked.totals is None):
        parser.error("--against STUDY and --label TEXT belong together, and to --totals TABLE")
    if asked.take is not None:
        version = asked.version or version_of(asked.take)
        source = Source(version, asked.machine, asked.command)
        if asked.totals is not None:
            where = asked.take, asked.into, asked.totals, asked.name, source
            if asked.against is None:
                take_totals(*where)
            else:
                add_totals(*where, asked.against, asked.label)
        else:
            take_study(asked.take, asked.into, asked.name, source)
    for path, text in pages().items():
        write_atomic(path, text.encode())


if __name__ == "__main__":
    main()
