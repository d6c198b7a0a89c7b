"""The table of whole trainings, and what the other tables say of the images sent once."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from adc_edge.evaluation.report.sheet import Sheet
from adc_edge.evaluation.report.tables import sheets, study_markdown, study_table
from adc_edge.evaluation.report.views import views
from adc_edge.evaluation.totals.beside import NO_PICTURES, Beside
from tests.evaluation.report.test_fleets import RUNS as FLEET_RUNS
from tests.evaluation.report.test_views import STUDY, rises
from tests.evaluation.totals.test_frames import BESIDE, RUNS, judged_on_50

LONGEST = "adc-batch@0.125/pca0.5:pca0.75"
ALL = [*RUNS, *judged_on_50(rises(0.8, 0.82, setting=LONGEST, share=0.02))]


def titled(title: str, beside: Beside = BESIDE) -> Sheet:
    return next(sheet for sheet in sheets(views(STUDY, ALL, (0.05, 1.0), beside)) if sheet.title == title)


def cells(sheet: Sheet, section: str, first: str) -> dict[str, str]:
    rows = next(s.rows for s in sheet.sections if s.title == section)
    return dict(zip(sheet.columns, next(row for row in rows if row[0] == first), strict=True))


def test_the_images_sent_once_are_the_first_rows_of_the_table_of_whole_trainings() -> None:
    sheet = titled("Bytes of a whole training")
    assert sheet.sections[0].title == "the images, sent once"
    assert [row[0] for row in sheet.sections[0].rows] == ["own files", "JPEG q90", "JPEG q75"]
    shown = cells(sheet, "the images, sent once", "JPEG q75")
    assert (shown["MB steps"], shown["MB eval"], shown["MB total"]) == ("0.004", "0.002", "0.006")
    assert "4 a run, of 50 images in pca4 or pca1, as `serve` sends them" in sheet.caption


def test_every_setting_has_its_sum_and_its_epochs_of_break_even() -> None:
    shown = cells(titled("Bytes of a whole training"), "adc-edge", "none/pca1:pca2")
    assert (shown["MB steps"], shown["MB trunk"]) == ("0.008", "0.005")
    assert [shown[name] for name in ("files", "q90", "q75")] == ["below", "below", "2"]
    assert [cells(titled("Bytes of a whole training"), "uncompressed", "none")[n] for n in ("files", "q75")] == [
        "3",
        "0.4",
    ]


def test_every_table_of_bytes_tells_the_images_bytes() -> None:
    told = "own files 75 %, JPEG q90 22.5 %, JPEG q75 10 % of an uncompressed run's bytes"
    for sheet in sheets(views(STUDY, ALL, (0.05, 1.0), BESIDE)):
        assert told in sheet.caption or sheet.title == "Bytes of a whole training"
    shown = cells(titled("After equal steps"), "the images, sent once", "JPEG q90")
    assert (shown["share %"], shown["MB up"], shown["MB down"]) == ("22.5", "0.009", "0")
    fleets = sheets(views(STUDY, FLEET_RUNS, (1.0,), BESIDE))
    assert fleets[0].title == "Fleets after equal images"
    assert told in fleets[0].caption


def test_without_pictures_the_lines_are_left_out_and_every_table_says_why() -> None:
    lost = Beside(None, BESIDE.trunk, note=f"{NO_PICTURES}: folder:gone is no directory.")
    for sheet in sheets(views(STUDY, ALL, (0.05, 1.0), lost)):
        assert "folder:gone is no directory." in sheet.caption
        assert "the images, sent once" not in [section.title for section in sheet.sections]
    shown = cells(titled("Bytes of a whole training", lost), "adc-edge", "none/pca1:pca2")
    assert [shown[name] for name in ("files", "q90", "q75")] == ["–", "–", "–"]


def test_a_source_without_files_has_no_row_of_files_and_no_epoch() -> None:
    assert BESIDE.pictures is not None
    arrays = [split.__class__(50, 50, 0, None, 9_000, 4_000) for split in (BESIDE.pictures.train,) * 2]
    beside = BESIDE._replace(pictures=BESIDE.pictures.__class__(1, (16, 16), "Pillow", *arrays))
    sheet = titled("Bytes of a whole training", beside)
    assert [row[0] for row in sheet.sections[0].rows] == ["JPEG q90", "JPEG q75"]
    assert cells(sheet, "uncompressed", "none")["files"] == "–"


def test_a_central_evaluation_is_told() -> None:
    sheet = titled("Bytes of a whole training", BESIDE._replace(evaluation="central"))
    assert "the trainer's own, which cost none" in sheet.caption
    assert cells(sheet, "uncompressed", "none")["MB eval"] == "0"


def test_without_a_trunk_the_tables_are_those_of_before() -> None:
    assert study_markdown(sheets(views(STUDY, ALL, (0.05,)))) == study_markdown(
        sheets(views(STUDY, ALL, (0.05,), Beside()))
    )
    assert "Bytes of a whole training" not in [sheet.title for sheet in sheets(views(STUDY, ALL, (0.05,)))]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_terminal_of_80_columns_or_more_shows_every_number_whole(width: int) -> None:
    sheet = titled("Bytes of a whole training")
    screen = io.StringIO()
    Console(file=screen, width=width).print(study_table(sheet, width))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    kept = list(range(len(sheet.columns)))
    if width == 80:
        assert "Left out of this narrow table: MB trunk;" in " ".join(text.split())
        kept = [number for number in kept if sheet.columns[number] != "MB trunk"]
    else:
        assert "Left out" not in text
    words = set(text.split())
    missing = [
        cell
        for section in sheet.sections
        for row in section.rows
        for cell in (row[number] for number in kept)
        if not set(cell.split()) <= words and not set(cell.replace("/", " /").split()) <= words
    ]
    assert not missing
