"""Measured tables as JSON records, a file of docs/results for each study; results_page.py writes the pages from them.

Shares, accuracies and their spreads are in %, differences in points, sizes in MB. ``deviation`` is the standard
deviation over seeds, ``sem`` the standard error of the mean; None: one seed.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from adc_edge.errors import SettingError

RESULTS = Path(__file__).parents[1] / "docs" / "results"
FORMAT = 1


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The measurement that rows come from."""

    version: str  # of adc-edge
    machine: str
    command: str


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    source: str  # a name in the file's ``sources``
    seeds: int


class StepsRow(_Row, frozen=True):
    """A setting after the study's epochs; ``share`` is a step's bytes, both ways, of an uncompressed step's."""

    group: str
    setting: str
    share: float
    accuracy: float
    deviation: float | None
    sem: float | None
    best: float
    mb_up: float
    mb_down: float


class Pictures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Images that could be sent as JPEG files once, instead of activations in each epoch."""

    name: str
    bytes_an_image: list[float]  # in the order of the name's qualities
    source: str  # where the sizes come from, in words


class StepsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="steps", tag_field="kind"):
    """Settings after equal steps, and the pictures' bytes beside them."""

    rows: list[StepsRow]
    images: int
    epochs: float
    uncompressed_bytes: float  # an image and epoch, both ways
    pictures: list[Pictures] = []


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy at the last evaluation within a budget; ``early``: over 5 % of the budget was left."""

    accuracy: float
    deviation: float | None = None
    early: bool = False


class BudgetsRow(_Row, frozen=True):
    """A setting at each budget; None: no evaluation within it."""

    group: str
    setting: str
    levels: list[Level | None]


class BudgetsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="budgets", tag_field="kind"):
    """Settings after equal bytes; a budget is a share of an uncompressed run's bytes."""

    budgets: list[float]
    rows: list[BudgetsRow]


class BestRow(_Row, frozen=True):
    """A group's best setting within a budget, and adc-edge's lead over it, in points and in standard errors."""

    budget: float
    group: str
    setting: str
    share: float
    accuracy: float
    sem: float
    tried: int
    early: bool = False
    difference: float | None = None
    difference_errors: float | None = None
    paired: float | None = None
    paired_errors: float | None = None


class BestTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="best", tag_field="kind"):
    """The best setting of each group within each budget."""

    rows: list[BestRow]


class CaseRow(_Row, frozen=True):
    """A case of an ablation; the difference to the first row in points and in standard errors."""

    name: str
    share: float
    accuracy: float
    deviation: float | None = None
    difference: float | None = None
    difference_errors: float | None = None


class CasesTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cases", tag_field="kind"):
    """Cases of an ablation."""

    rows: list[CaseRow]


class LeakRow(_Row, frozen=True):
    """Images reconstructed from what a setting sends up."""

    setting: str
    share_up: float | None  # bytes up, of the uncompressed; None: nothing is sent
    images_a_row: float | None
    psnr_db: float
    ssim: float


class LeaksTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="leaks", tag_field="kind"):
    """Scores of an inverter; the last row is the mean image."""

    rows: list[LeakRow]


class Gap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A difference in points, with its standard error, or with the number of standard errors that it is."""

    points: float
    seeds: int | None = None  # given where the row's seeds do not hold
    sem: float | None = None
    errors: float | None = None


class GapsRow(_Row, frozen=True):
    """Differences of one comparison, one a column; None: not measured."""

    name: str
    gaps: list[Gap | None]
    share: float | None = None  # of the bytes


class GapsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="gaps", tag_field="kind"):
    """Differences of accuracy in points, with ``digits`` after the point."""

    header: list[str]
    rows: list[GapsRow]
    digits: int = 1
    signed: bool = False


class FactorsRow(_Row, frozen=True):
    """Factors of one way of coding, one a column; None: not measured."""

    name: str
    factors: list[float | None]


class FactorsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="factors", tag_field="kind"):
    """Bytes after a coder, relative to those before it."""

    header: list[str]
    rows: list[FactorsRow]


class Judged(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy of evaluations in a precision less that of unrounded activations, in points.

    ``points`` is the mean over evaluations and seeds, ``sem`` that of the seeds' means, ``largest`` the largest
    difference of a single evaluation, either way.
    """

    points: float
    sem: float | None
    largest: float
    bytes_an_image: int  # bodies of the messages, with labels


class JudgedRow(_Row, frozen=True):
    """Evaluations of one training in several precisions; ``accuracy`` is the last one's with unrounded activations."""

    data: str
    setting: str
    evaluations: int  # of each seed
    accuracy: float
    judged: list[Judged]


class JudgedTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="judged", tag_field="kind"):
    """Evaluations in each of ``precisions``."""

    precisions: list[str]
    rows: list[JudgedRow]


class TotalsRow(_Row, frozen=True):
    """A setting's whole training; ``difference`` to the uncompressed one in points, paired by seed."""

    setting: str
    accuracy: float
    deviation: float | None
    difference: float | None
    difference_sem: float | None
    kb_steps: float  # of all steps, both ways, an image
    passes: list[float | None]  # the epoch at which the steps have cost as much as each line; None: they never do


class TotalsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="totals", tag_field="kind"):
    """Bytes of whole trainings beside those of the images, sent once as JPEG."""

    rows: list[TotalsRow]
    epochs: float
    images: int
    mb_evaluation: float
    evaluated: int  # images of an evaluation
    mb_weights: float  # first weights of the trunk
    lines: list[str]  # of the images sent once, as their own files or in a quality, which rows pass
    pictures: list[Pictures] = []


Table = (
    StepsTable
    | BudgetsTable
    | BestTable
    | CasesTable
    | LeaksTable
    | GapsTable
    | FactorsTable
    | JudgedTable
    | TotalsTable
)


class Records(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tables of one study."""

    format: int
    sources: dict[str, Source]
    tables: dict[str, Table]

    def sources_of(self, table: Table) -> list[Source]:
        """The sources of a table's rows, in their order."""
        return [self.sources[row.source] for row in table.rows]


def read_records(name: str, directory: Path = RESULTS) -> Records:
    """Read the records of a study.

    Raises:
        SettingError: the file is absent, no such record, or a row names no source of the file.
    """
    path = directory / f"{name}.json"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Records)
    except (OSError, msgspec.MsgspecError) as error:
        raise _broken(f"{path}: {error}") from None
    named = {row.source for table in found.tables.values() for row in table.rows}
    if found.format != FORMAT or (unknown := named - found.sources.keys()):
        raise _broken(f"{path} of format {found.format}" if found.format != FORMAT else f"{path}: sources {unknown}")
    return found


def _broken(received: str) -> SettingError:
    return SettingError(received, "records of measured tables", "see docs/results for such files")


def steps_table(name: str, directory: Path = RESULTS) -> StepsTable:
    """The table ``steps`` of a study; raises SettingError as ``read_records``."""
    found = read_records(name, directory).tables["steps"]
    assert isinstance(found, StepsTable)
    return found
