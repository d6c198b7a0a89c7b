"""Tables and plots of scale.py's results: blocks of docs/scale.md between comments, and SVG files beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure
from scale_answers import SLOWER, Answer
from scale_check import BOUND, Agreement
from scale_stated import Stated

from adc_edge.errors import SettingError
from adc_edge.markdown import markdown_table

if TYPE_CHECKING:
    from scale import Results
    from scale_work import Work

_QUIET = 1.1  # load up to which a row tells of the simulation
_FEW_RANKS = 8  # more are extrapolated from collectives of two ranks
_BLOCK = re.compile(r"(<!-- scale\.py: (?P<name>[a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_COLOURS = {"wired": "#0072B2", "home": "#009E73", "cellular": "#D55E00"}
_USES = {  # of a rank's time: colours of the plot
    "head": "#0072B2", "codec": "#56B4E9", "loop": "#009E73", "CURVE": "#CC79A7", "update": "#999999", "log": "#F0E442",
    "checkpoint": "#D55E00", "all_reduce": "#E69F00", "small collectives": "#882255", "record": "#332288",
    "other ranks": "#DDDDDD",
}  # fmt: skip


def write(directory: Path, results: Results) -> None:
    """Replace the blocks of ``scale.md`` in a directory, and draw the plots beside it.

    Raises:
        SettingError: the page is absent, or lacks a block.
    """
    page = directory / "scale.md"
    text = page.read_text() if page.exists() else ""
    blocks = rendered(results)
    found = {match["name"] for match in _BLOCK.finditer(text)}
    if missing := blocks.keys() - found:
        remedy = "put `<!-- scale.py: NAME -->` and `<!-- end -->` where each belongs"
        raise SettingError(f"{page} without blocks {', '.join(sorted(missing))}", "a page with all blocks", remedy)
    page.write_text(_BLOCK.sub(lambda m: f"{m[1]}{blocks.get(m['name'], '').rstrip()}\n{m[3]}", text))
    matplotlib.rcParams["svg.hashsalt"] = "scale"  # the same file from the same results
    for name, figure in figures(results).items():
        figure.savefig(directory / name, metadata={"Date": None})


def rendered(results: Results) -> dict[str, str]:
    """The blocks by name."""
    return {
        "measured": measured(results),
        "agreement": agreement([row for rows in results.check.values() for row in rows]),
        "gloo": gloo(results),
        "stated": stated(results),
        "needs": needs(results.answers, results.are_answers_current()),
    }


def measured(results: Results) -> str:
    rows = [
        (name, one.date, f"{one.processor}, {one.cores} cores", f"{one.load[0]:g}, {one.load[1]:g}")
        for name, one in results.measured.items()
    ]
    return markdown_table(("what", "measured (UTC)", "on", "load before, after"), rows) + _work(results)


def _work(results: Results) -> str:
    work = results.work
    if work is None:
        return ""
    files, wire = work.files, work.wire
    rows = [
        ("an answer of 80 kB to the log", files.append.seconds(80_000)),
        ("a line of metrics", files.metric),
        ("to flush one answer to the disk, at a checkpoint", files.entry),
        ("to write head and optimizer of 10 MB to the disk", files.save.seconds(10e6)),
        ("processor time of a message of 80 kB in a socket; with CURVE more", wire.plain.seconds(80_000)),
        ("the same, more with CURVE", wire.curve.seconds(80_000) - wire.plain.seconds(80_000)),
    ]
    cells = [
        ("a message in the loop before its answer has left, beside decode, head and encode", _clipped(work, "loop")),
        ("a step after its answer, beside the optimizer: log and metrics", _clipped(work, "after")),
        ("a replaying device, from an answer to the arrival of its next message", _clipped(work, "own")),
        *((name, f"{1e3 * seconds:.2f}") for name, seconds in rows),
    ]
    table = "\n\n" + markdown_table(("of a trainer's loop", "ms"), cells)
    return table + (_checkpoints(work.checkpoint_ratios) if work.checkpoint_ratios else "")


def _clipped(work: Work, name: str) -> str:
    """Milliseconds of a parameter; what was computed, where it was below 0."""
    seconds = getattr(work, name)
    if seconds > 0:
        return f"{1e3 * seconds:.2f}"
    computed = work.unclipped.get(name)
    return "0.00 (clipped)" if computed is None else f"0.00 (clipped; measured: {1e3 * computed:.2f})"


def _checkpoints(ratios: Sequence[float]) -> str:
    """The trainer's checkpoints v those of the files' times; the median is what the needs are computed with."""
    spread = f"{median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f}, {len(ratios)} checkpoints)"
    name = "seconds of a checkpoint in a running trainer v those that the rows above give: median (lowest … highest)"
    return "\n\n" + markdown_table(("of a checkpoint", "ratio"), [(name, spread)])


def agreement(rows: Sequence[Agreement]) -> str:
    """Real v simulated, and how many figures are within the bound."""
    columns = (
        "head",
        "devices",
        "steps",
        "load",
        "steps/s: real, simulated, ratio",
        "p50 ms",
        "p99 ms",
        "CPU ms a step",
    )
    cells = [
        (
            f"{row.head} ({row.alone_ms / row.stretch:.0f} ms alone)",
            str(row.devices),
            str(row.steps),
            f"{row.stretch:.2f}",
            _pair(row.rate, 1, ".1f"),
            _pair(row.p50, 1e3, ".0f"),
            _pair(row.p99, 1e3, ".0f"),
            _pair(row.cpu, 1e3, ".1f"),
        )
        for row in rows
    ]
    return f"{markdown_table(columns, cells)}\n\n{_met(rows)}\n"


def _met(rows: Sequence[Agreement]) -> str:
    """Which figures are within the bound, and how many are not."""
    total = 3 * len(rows)
    missed = total - sum(row.holds() for row in rows)
    near = sum(abs(row.cpu[1] / row.cpu[0] - 1) <= BOUND for row in rows)
    also = f"so are {near} of {len(rows)} of processor time."
    if not missed:
        return f"The bound of {BOUND:.0%} was met for all {total} figures of steps/s, p50 and p99; {also}"
    parts = []
    for number, name in enumerate(("steps/s", "p50", "p99")):
        held = [f"{row.head} {row.devices}" for row in rows if abs(row.ratios()[number] - 1) <= BOUND]
        which = f" ({', '.join(held)})" if held else ""
        parts.append(f"{len(held)} of {len(rows)} of {name}{which}")
    said = f"**The bound of {BOUND:.0%} was not met for {missed} of {total} figures.** Within it are {', '.join(parts)}"
    quiet = sum(row.stretch <= _QUIET for row in rows)
    return f"{said}; {also} {quiet} of {len(rows)} rows were measured with a load of at most {_QUIET:g}."


def _pair(pair: tuple[float, float], factor: float, form: str) -> str:
    real, ours = pair
    ratio = ours / real
    text = f"{ratio:.2f}" if abs(ratio - 1) <= BOUND else f"**{ratio:.2f}**"
    return f"{factor * real:{form}}, {factor * ours:{form}}, {text}"


def gloo(results: Results) -> str:
    if results.gloo is None:
        return ""
    rows = [
        (str(ranks), f"{size:,}", f"{1e3 * found:.2f}", f"{1e3 * ours:.2f}")
        for ranks, size, found, ours in results.gloo.predicted()
    ]
    return markdown_table(("ranks", "bytes", "all_reduce ms", "the ring's ms"), rows)


def stated(results: Results) -> str:
    found = results.stated
    if found is None:
        return ""
    return markdown_table(("assumption", "value"), list(_stated(found)))


def _stated(found: Stated) -> Iterable[tuple[str, str]]:
    for board in found.boards:
        yield f"board {board.name}", f"{board.factor:g} times the seconds of one thread of the x86 processor"
    for link in found.links:
        rates = f"{link.up_mbit_s:g} Mbit/s up, {link.down_mbit_s:g} down"
        yield f"link {link.name}", f"{link.rtt_ms:g} ms, {rates} (medians; log-normal over devices and messages)"
    for head in found.heads:
        speed = "as measured on one core"
        if head.pass_s is not None and head.row_s is not None and head.codec_s is not None:
            speed = f"**not measured**: {1e3 * head.pass_s:g} ms a pass + {1e6 * head.row_s:g} µs a token, "
            speed += f"{1e3 * head.codec_s:g} ms of codec a message; up to {head.merged} messages a pass"
        yield f"head on a {head.name}", f"{speed}; {head.price_hour:g} $ an hour"
    yield "between ranks", found.network.name
    yield "egress", f"{found.egress_gb:g} $ a GB"
    yield "prices", found.prices
    yield "ranks", f"`--sync {'every' if found.sync == 1 else found.sync}`, `--round-wait {found.round_wait_s:g}`"


def needs(rows: Sequence[Answer], current: bool) -> str:
    """The answers; ``current``: of the calibration that is shown."""
    columns = ("head", "board", "link", "devices", "ranks", "steps/s", "p50 s (alone)", "p99 s", "Mbit/s in, out",
               "$ a day", "a rank's time goes to")  # fmt: skip
    cells = [
        (
            row.head,
            row.board,
            row.link,
            f"{row.devices:,}",
            (f"{row.ranks:,}" if row.met else f"none; best: {row.ranks:,}") + " *" * (row.ranks > _FEW_RANKS),
            f"{row.rate:,.0f}",
            f"{row.p50:.2f} ({row.lone_p50:.2f})",
            f"{row.p99:.2f}",
            f"{row.up_mbit_s:,.0f}, {row.down_mbit_s:,.0f}",
            f"{row.cost_day:,.0f}",
            bottlenecks(row),
        )
        for row in rows
    ]
    said = (
        f"Median step at most {SLOWER:g} times that of a device alone. \\*: extrapolated, more than {_FEW_RANKS} ranks."
    )
    if not current:
        said += " **These needs are of an older calibration than the one shown above.**"
    network = max((row.use.get("network", 0.0) for row in rows), default=0.0)
    curve = max((row.use.get("CURVE", 0.0) for row in rows), default=0.0)
    busiest = (
        f"\n\nHighest of all rows: {curve:.1%} of a rank's time for CURVE, {network:.1%} of its network interface "
    )
    return f"{said}\n\n{markdown_table(columns, cells)}{busiest}(devices and collectives)."


def bottlenecks(row: Answer) -> str:
    """The three largest uses of a rank's time."""
    spent = {name: share for name, share in row.use.items() if name != "network"}  # that is no time
    largest = sorted(spent.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {share:.0%}" for name, share in largest if share >= 0.005)


def figures(results: Results) -> dict[str, Figure]:
    """The plots by file name."""
    drawn: dict[str, Callable[[], Figure]] = {}
    if results.answers:
        drawn |= {"scale-ranks.svg": lambda: ranks_figure(results.answers)}
        drawn |= {"scale-use.svg": lambda: use_figure(results.answers)}
    return {name: draw() for name, draw in drawn.items()}


def ranks_figure(rows: Sequence[Answer]) -> Figure:
    """Draw ranks against devices, a line for each board and link; a hollow point is not enough."""
    heads = list(dict.fromkeys(row.head for row in rows))
    figure = Figure(figsize=(4.2 * len(heads), 3.6), layout="constrained")
    panels = figure.subplots(1, len(heads), sharey=True, squeeze=False)[0]
    for axes, head in zip(panels, heads, strict=True):
        for board, dashes in zip(dict.fromkeys(row.board for row in rows), ("-", "--", ":"), strict=False):
            for link in dict.fromkeys(row.link for row in rows):
                same = [row for row in rows if (row.head, row.board, row.link) == (head, board, link)]
                places = [row.devices for row in same], [row.ranks for row in same]
                axes.loglog(*places, dashes, color=_COLOURS.get(link), label=f"{board}, {link}")
                for row in same:
                    filled = _COLOURS.get(link) if row.met else "white"
                    axes.plot(row.devices, row.ranks, "o", ms=5, mfc=filled, mec=_COLOURS.get(link))
        title = head if "GPU" not in head else f"{head} (stated speed)"
        axes.set(xlabel="devices", title=title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="ranks")
    panels[0].legend(fontsize=7, frameon=False, handlelength=3.5)
    return figure


def use_figure(rows: Sequence[Answer]) -> Figure:
    """Bars: what a rank's time is spent for."""
    shown = [row for row in rows if row.link == "home"]
    figure = Figure(figsize=(8.4, 0.32 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(shown)
    for part, colour in _USES.items():
        shares = [100 * row.use.get(part, 0.0) for row in shown]
        axes.barh(range(len(shown)), shares, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    labels = [f"{row.head}, {row.board}, {row.devices:,}: {row.ranks:,} ranks" for row in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="% of a rank's time; the rest is idle", title="Links of class home")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return figure
