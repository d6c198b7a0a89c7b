"""Output that takes any text in any encoding, with or without colours, and fits its terminal. Imports click alone.

A character that the encoding lacks is written in ASCII: ξ as xi, … as ..., ✓ as ok. A byte of a file name that is not
UTF-8 is written as \\xff. An output whose reader has gone takes the rest without a word.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

LAYOUT = "\n\t"  # control characters that a text of several lines may have
_ANY_WIDTH = 10_000  # columns of a terminal on which no table is too wide
_SPELLED = "adc-edge.spelled"  # error handler
_ASCII = "adc-edge-ascii"  # codec; click writes UTF-8 to an output whose encoding has the name ascii
_SPELLINGS = """
ξ=xi σ=sigma √=sqrt µ=u μ=u ²=^2 ³=^3 °=deg ±=+- ×=x ·=* •=* ≤=<= ≥=>= ≈=~ →=-> ←=<- …=... –=- —=- −=- ✓=ok ✗=no
‘=' ’=' “=" ”=" ß=ss ▁=_ ▂=. ▃=: ▄=- ▅== ▆=+ ▇=* █=# ░=. ●=* ○=o ─=- ━=- ═=- ╌=- ╍=- ┄=- ┅=- ╸=- ╺=- │=| ┃=| ║=|
"""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")  # bidi too
_WORDS = dict(pair.split("=", 1) for pair in _SPELLINGS.split()) | dict.fromkeys("┌┐└┘├┤┬┴┼┏┓┗┛┣┫┳┻╋┡┩╇╭╮╯╰", "+")


def prepare() -> None:
    """Make standard output and standard error take any text. A closed one becomes the null device."""
    if sys.stdin is None:  # opened first, so that no file or socket gets a standard descriptor
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        else:
            take_any_text(stream)


def take_any_text(stream: object) -> None:
    """Let ``stream``, if it encodes text, spell what its encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        ascii_alone = codecs.lookup(stream.encoding).name == "ascii"
        stream.reconfigure(encoding=_ASCII if ascii_alone else None, errors=_SPELLED)


def spell(text: str, encoding: str) -> str:
    """Return ``text`` as a stream of ``encoding`` shows it."""
    return text.encode(encoding, _SPELLED).decode(encoding)


def readable(text: str) -> str:
    """Return ``text`` with each byte of a file name that is not UTF-8 as ``\\xff``: what a JSON or HTML file takes."""
    return spell(text, "utf-8")


def escaped(text: str, but: str = "") -> str:
    """Return ``text`` with its control characters, except those in ``but``, as ``\\x1b``: no terminal obeys them."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in but else _code(ord(found[0])), text)


def command_lines(command: str, width: int | None, begin: str = "  ") -> list[str]:
    """Return a shell command in lines of at most ``width`` columns, as far as its words allow; None: in one line.

    Lines are broken before options and end with a backslash, so that they can be pasted as they stand. The first one
    stands behind ``begin``.
    """
    parts: list[str] = []
    for word in re.findall(r"(?:'[^']*'|[^\s'])+", command):
        if parts and not word.startswith("-"):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    line, lines = f"{begin}{parts[0]}", []
    for part in parts[1:]:
        if width is not None and len(f"{line} {part} \\") > width:
            lines.append(f"{line} \\")
            line = f"{' ' * len(begin)}   "
        line += f" {part}"
    return [*lines, line]


def fitting_table(forms: Iterable[Table], width: int) -> Table:
    """Return the first of ``forms``, of which there is at least one, that fits ``width`` columns, or else the last."""
    from rich.console import Console  # `doctor` runs where rich is missing

    console, narrower = Console(width=_ANY_WIDTH, file=io.StringIO()), iter(forms)
    table = next(narrower)
    while console.measure(table).maximum > width and (following := next(narrower, None)) is not None:
        table = following
    return table


def silence(stream: object) -> None:
    """Send what is written to ``stream`` from now on to the null device."""
    try:
        handle = stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, handle)
    os.close(null)


def add_no_color(command: click.Command) -> click.Command:
    """Give a command, and those below it, ``--no-color``; the variable ``NO_COLOR`` has the same effect."""
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        add_no_color(inner)
    if not any(param.name == "no_color" for param in command.params):
        option = click.Option(
            ["--no-color"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_leave_colour_out,
            help="Print without colours, as with NO_COLOR=1.",
        )
        vars(option)["heading"] = "Logging"
        command.params.append(option)
    return command


def _leave_colour_out(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Tell click, rich and the processes that the command starts."""
    if value:
        os.environ["NO_COLOR"] = "1"
    if os.environ.get("NO_COLOR"):
        ctx.find_root().color = ctx.color = False


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that Python could not decode
        return f"\\x{code - 0xDC00:02x}"
    if 0x2800 <= code <= 0x28FF:  # a picture of rich's spinner
        return "*"
    if character in _WORDS:
        return _WORDS[character]
    plain = unicodedata.normalize("NFKD", character)
    return plain if plain.isascii() else character.encode("ascii", "backslashreplace").decode()


def _find_codec(name: str) -> codecs.CodecInfo | None:
    if name.replace("_", "-") != _ASCII:
        return None
    info = codecs.lookup("ascii")
    return codecs.CodecInfo(
        info.encode,
        info.decode,
        info.streamreader,
        info.streamwriter,
        info.incrementalencoder,
        info.incrementaldecoder,
        name=_ASCII,
    )


def _code(number: int) -> str:
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


codecs.register(_find_codec)
codecs.register_error(_SPELLED, _spelled)
