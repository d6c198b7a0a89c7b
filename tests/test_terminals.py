"""Any encoding of the terminal, any bytes in names of files, a reader that has gone, no place for temporary files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image
from rich.table import Table

from adc_edge.cli import COMMANDS, main
from adc_edge.cloud_trainer.server import Server
from adc_edge.defaults import Compute
from adc_edge.export.parity import ParityRow
from adc_edge.export.report import parity_table
from adc_edge.files import json_bytes
from adc_edge.logs import AnyConsole
from adc_edge.terminal import readable, spell, take_any_text

BAD = os.fsdecode(b"n\xffm[b]\xc3\xa9")  # not UTF-8, and what rich would take for markup


def run(*arguments: str | Path, encoding: str = "ascii", **more: str) -> tuple[int, bytes]:
    """Exit code and output of a command in a process of its own; a traceback fails the test."""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "80"} | more
    command = [sys.executable, "-m", "adc_edge", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=200)
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done.returncode, done.stdout + done.stderr


def printed(table: Table, encoding: str = "utf-8", width: int = 80) -> list[str]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    take_any_text(file)
    AnyConsole(file=file, width=width).print(table)
    return raw.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("ξ … × ✓ ✗ ± → ° σ", "ascii", "xi ... x ok no +- -> deg sigma"),
        ("ξ é ×", "latin-1", "xi é ×"),
        ("ξ … ±", "cp1252", "xi … ±"),
        ("─│┌┼┘━┃", "ascii", "-|+++-|"),
        ("日本 é", "ascii", "\\u65e5\\u672c \\xe9"),
        ("a\udcff\udc80", "utf-8", "a\\xff\\x80"),
        ("ξ é", "utf-8", "ξ é"),
    ],
)
def test_what_an_encoding_lacks_is_spelled_in_ascii(text: str, encoding: str, expected: str) -> None:
    assert spell(text, encoding) == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_the_help_of_every_command_is_printed_in_any_encoding(encoding: str) -> None:
    code = (
        "from adc_edge.cli import main\n"
        f"for command in {['', *COMMANDS]!r}:\n"
        "    try: main([*command.split(), '--help'])\n"
        "    except SystemExit as end: assert not end.code\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert ("ξ = (T/B)" if encoding == "utf-8" else "xi = (T/B)") in text


def test_tables_have_the_same_widths_in_ascii() -> None:
    table = Table("share", title="ξ, mean ± deviation", caption="–")
    table.add_row("84.0 ± 2.6")
    table.add_row("ξ …")
    lines = printed(table, "ascii")
    assert len({len(line.rstrip()) for line in lines if "|" in line or "+--" in line}) == 1
    assert any("84.0 +- 2.6" in line for line in lines)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [80, 120])
def test_the_parity_table_shows_every_column_on_a_terminal_of_80(encoding: str, width: int) -> None:
    cases: list[tuple[Compute, str, int]] = [
        ("fp32", "export", 1025),
        ("fp16", "refresh 1", 65),
        ("fp16", "evaluate", 197),
    ]
    rows = [
        ParityRow(compute, stage, 16, 12, kept, 1.2e-7, 3e-7, True, 1.0, 0.9876, 2e-7) for compute, stage, kept in cases
    ]
    lines = printed(parity_table(rows), encoding, width)
    header = "stage B T k scores hidden activations clusters assigned tokens ok".split()
    assert [line.split() for line in lines if "stage" in line] == [header]
    assert "refresh 1 fp16 16 12 65 1e-07 3e-07 2e-07 exact 100.0% 98.8% yes".split() in [
        line.split() for line in lines
    ]
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_parity_table_leaves_columns_out_on_a_terminal_of_60(encoding: str) -> None:
    rows = [ParityRow("fp16", "refresh 1", 16, 12, 1025, 1.2e-7, 3e-7, True, 1.0, 0.9876, 2e-7)]
    lines = printed(parity_table(rows, 60), encoding, 60)
    assert max(map(len, lines)) <= 60
    assert "refresh 1 fp16" in " ".join(lines)
    assert {"activations", "clusters", "assigned", "tokens", "ok"} <= {word for line in lines for word in line.split()}
    assert not any(mark in line for line in lines for mark in ("…", "..."))


def test_keys_list_shows_whole_fingerprints_on_a_terminal_of_80(tmp_path: Path) -> None:
    for name in ("trainer", "device"):
        run("keys", "new", "--keys", tmp_path / name)
    key = tmp_path / "device" / "public.key"
    run("keys", "allow", "a-rather-long-device-name-in-hall-7", key, "--keys", tmp_path / "trainer")
    code, output = run("keys", "list", "--keys", tmp_path / "trainer")
    lines = output.decode("ascii").splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert "..." not in output.decode("ascii")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_keys_list_stacks_its_columns_where_they_do_not_fit(width: int, tmp_path: Path) -> None:
    name = "a-rather-long-device-name-in-hall-7"
    for place in ("trainer", "device"):
        run("keys", "new", "--keys", tmp_path / place)
    run("keys", "allow", name, tmp_path / "device" / "public.key", "--keys", tmp_path / "trainer")
    _, output = run("keys", "list", "--keys", tmp_path / "trainer", encoding="utf-8", COLUMNS=str(width))
    lines = output.decode().splitlines()
    assert max(map(len, lines)) <= width
    words = output.decode().split()
    assert name in " ".join(words).replace("│", " ").split()
    assert len([word for word in words if word.count("-") == 3]) == 2  # whole fingerprints
    assert ("fingerprint" in words) == (width == 120)


@pytest.mark.parametrize("width", [60, 80])
def test_the_help_of_every_command_fits(width: int) -> None:
    code = (
        "from adc_edge.cli import main\n"
        f"for command in {['', *COMMANDS]!r}:\n"
        "    try: main([*command.split(), '--help'])\n"
        "    except SystemExit as end: assert not end.code\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": str(width)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert [line for line in done.stdout.decode().splitlines() if len(line) > width] == []


def on_a_terminal(*arguments: str, **more: str) -> str:
    """Output of a command on a terminal that shows colours."""
    parent, child = pty.openpty()
    without = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    environment = without | {"TERM": "xterm-256color"} | more
    command = [sys.executable, "-m", "adc_edge", *arguments]
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal whose other side has gone
        while part := os.read(parent, 1 << 16):
            shown += part
    process.wait()
    os.close(parent)
    return shown.decode(errors="replace")


COLOUR = re.compile("\x1b\\[[0-9;]*(3[0-9]|4[0-7]|9[0-7])[0-9;]*m")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["link --trainer tcp://127.0.0.1:9 --wait 0.1", "doctor --trainer tcp://127.0.0.1:9"]
)
def test_colours_are_left_out_where_they_are_not_wanted(command: str) -> None:
    words = command.split()
    assert COLOUR.search(on_a_terminal(*words))
    assert not COLOUR.search(on_a_terminal(*words, NO_COLOR="1"))
    assert not COLOUR.search(on_a_terminal(*words, "--no-color"))
    assert not COLOUR.search(on_a_terminal("--no-color", *words))


def test_every_command_has_no_color() -> None:
    groups: list[click.Command] = [main, *(get_command(main, name) for name in COMMANDS)]
    groups += [inner for group in groups[1:] if isinstance(group, click.Group) for inner in group.commands.values()]
    assert len(groups) > 15
    assert all(any("--no-color" in param.opts for param in command.params) for command in groups)


def get_command(group: click.Group, name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


def test_names_that_are_not_utf8_go_through_the_commands(tmp_path: Path) -> None:
    place = tmp_path / BAD
    code, output = run("keys", "new", "--keys", place)
    assert (code, output.count(rb"n\xffm[b]\xe9")) == (0, 2 + 1)
    assert run("keys", "list", "--keys", place)[0] == 0
    code, output = run("link", "--trainer", f"tcp://{BAD}:5700")
    assert code == 2
    assert b"expected: tcp://HOST:PORT" in output
    assert output.isascii()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("trainer --bundle BAD", b"no bundle at"),
        ("serve --bundle BAD --trainer tcp://127.0.0.1:9 --data npz:BAD", b"no bundle at"),
        ("export --model vit_tiny_patch16_224 --split 3 --weights BAD -o BAD", b"expected:"),
        ("doctor --bundle BAD --json BAD/doctor.json", b"this device cannot serve"),
        ("bench --bundle BAD", b"no bundle at"),
        ("merge --run-device BAD --run-trainer BAD -o BAD", b"is no run directory"),
        ("evaluate --data folder:BAD -o BAD", b"is no directory"),
        ("privacy --data csv:BAD -o BAD", b"No such file"),
    ],
)
def test_a_mistake_with_a_name_that_is_not_utf8_is_one_clear_error(command: str, words: bytes, tmp_path: Path) -> None:
    place = str(tmp_path / BAD)
    code, output = run(*(argument.replace("BAD", place) for argument in command.split()))
    assert code in (1, 2)
    assert words in output
    assert output.isascii()


def test_json_holds_readable_names_whatever_their_bytes() -> None:
    value = {"path": Path(BAD), BAD: [BAD, 1, None, float("nan")]}
    name = "n\\xffm[b]é"
    assert json.loads(json_bytes(value)) == {"path": name, name: [name, 1, None, None]}
    assert readable("plain") == "plain"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_run_whose_every_name_is_not_utf8_ends_resumes_and_is_reported(
    encoding: str, bundle_dir: Path, server: Server, tmp_path: Path
) -> None:
    bundle, images, device = tmp_path / BAD, tmp_path / f"photos{BAD}", tmp_path / f"run{BAD}"
    shutil.copytree(bundle_dir, bundle)
    for number in range(120):
        place = images / f"{number % 2}{BAD}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(place / f"{number}{BAD}.png")
    options: list[str | Path] = [
        "--data",
        f"folder:{images}",
        "--run",
        device,
        "--report",
        device / f"{BAD}.json",
        "--name",
        BAD,
    ]
    serve: list[str | Path] = [
        "serve",
        "--bundle",
        bundle,
        "--trainer",
        server.endpoint,
        "--eval-images",
        "8",
        *options,
    ]
    for steps in ("2", "3"):  # the second one resumes the first
        code, output = run(*serve, "--steps", steps, encoding=encoding)
        assert code == 0, output
        assert b"run kept in" in output
    assert json.loads((device / f"{BAD}.json").read_bytes())["steps"] == 3
    assert json.loads((device / "settings.json").read_bytes())["fixed"]["data"] == readable(f"folder:{images}")


LOGS = """
import logging, sys
from adc_edge import logs
console = logs.AnyConsole()
logs.configure(console)
for number in range(3):
    logging.getLogger("adc_edge.test").info("line %d", number)
console.print("a table")
sys.stderr.write("still at work")
"""


def quiet(code: str, stdout: int) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, check=False)


def test_a_reader_that_has_gone_stops_neither_the_run_nor_its_exit_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = quiet(LOGS, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"still at work")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_on_a_full_disk_stops_no_log() -> None:
    with open("/dev/full", "wb") as full:
        done = quiet(LOGS.replace("console.print", "# console.print"), stdout=full.fileno())
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"still at work" in done.stderr


def test_closed_standard_streams_are_no_error(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m adc_edge keys new --keys {tmp_path / 'keys'} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 0
    assert (tmp_path / "keys" / "public.key").is_file()


READ_ONLY = """
set -e
for place in /tmp /var/tmp /usr/tmp; do
    if [ -d $place ]; then mount --bind $place $place; mount -o remount,bind,ro,nosuid,nodev $place; fi
done
cd /proc
exec "$@"
"""
NO_RUN = "from adc_edge.storage.run_dir import RunDir; RunDir(None, {}, {})"


def test_without_a_place_for_temporary_files_one_error_says_what_to_set() -> None:
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], check=False, stderr=-3).returncode:
        pytest.skip("this system makes no namespace of mounts")
    environment = {key: value for key, value in os.environ.items() if key not in ("TMPDIR", "TEMP", "TMP")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [*inside, sys.executable, "-c", NO_RUN], capture_output=True, text=True, check=False, env=environment
    )
    assert "SettingError: no temporary directory" in done.stderr
    assert "TMPDIR=DIR" in done.stderr
    assert "--run DIR" in done.stderr
