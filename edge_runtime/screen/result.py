"""The table at the end of a run: what it did, and what that cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from adc_edge.screen.words import rate_in_words
from adc_edge.wire.tcp import KERNEL_COUNTS

_PHASES = (  # link and trainer overlap with the phases of the device
    ("data", "data"),
    ("forward", "forward"),
    ("encode", "encode"),
    ("send", "send, journal"),
    ("recompute", "recompute"),
    ("wait", "wait"),
    ("decode", "decode"),
    ("backward", "backward"),
    ("link", "(link)"),
    ("cloud", "(trainer)"),
    ("cloud_codec", "(trainer's codec)"),
)


def report_table(report: Mapping[str, Any]) -> Table:
    """The report of a run as a table."""
    steps = max(1, report["steps"])
    sent = report["bytes_up"] + report["bytes_down"]
    table = Table(title="What the run did and what it cost", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("test accuracy", _percent(report["accuracy"]))
    if best := report["best"]:
        table.add_row("best, kept", f"{_percent(best['accuracy'])}, step {best['step']}")
    if stopped := report.get("stopped"):
        table.add_row("ended early", f"at step {stopped['step']}")
    table.add_row("steps, images", f"{report['steps']}, {report['images']}")
    ways = [report.get(f"{way}_by_epoch", [report[way]]) for way in ("precision", "gradient_precision")]
    both = dict.fromkeys(map(",".join, ways))
    table.add_row("ξ sent, precision", f"{report['xi']:.3f}, {' / '.join(both)}")
    if changes := report.get("changes"):
        table.add_row("changes of settings", f"{changes}; these are the last ones")
    table.add_row("bytes up", decimal(report["bytes_up"]))
    table.add_row("bytes down", decimal(report["bytes_down"]))
    table.add_row("uncompressed fp32 would be", decimal(report["bytes_uncompressed_fp32"]))
    table.add_row("sent of that", f"1/{report['bytes_uncompressed_fp32'] / sent:.1f}" if sent else "-")
    table.add_row("evaluation, apart", decimal(report["bytes_evaluation_up"] + report["bytes_evaluation_down"]))
    if averages := report["averages"]:
        left_out = f", left out of {report['averages_left_out']}" if report["averages_left_out"] else ""
        table.add_row("averages taken", f"{averages} times{left_out}, {report['seconds_trunk']:.1f} s")
        table.add_row("  bytes, apart", decimal(report["bytes_trunk_up"] + report["bytes_trunk_down"]))
    if probes := report["bytes_probe_up"] + report["bytes_probe_down"]:
        table.add_row("probes of the link, apart", decimal(probes))
    table.add_section()
    table.add_row("time per step", f"{1e3 * report['seconds'] / steps:.1f} ms")
    for name, what in _PHASES:
        seconds = report[f"seconds_{name}"]
        share = f"{seconds / report['seconds']:5.0%}" if report["seconds"] else ""
        table.add_row(f"  {what}", f"{1e3 * seconds / steps:.1f} ms {share}")
    if waited := report.get("seconds_cloud_wait"):
        table.add_row("  (trainer's other devices)", f"{1e3 * waited / steps:.1f} ms {waited / report['seconds']:5.0%}")
    if found := report["busiest"]:
        table.add_row("busiest", f"{found['place']}, {found['share']:.0%} of a step")
        table.caption, table.caption_justify = found["relief"], "left"
    table.add_section()
    if report["rtt_ms"] is None:
        table.add_row("link", f"not measured ({_why_not_measured(report['steps'])})")
    else:
        for name, share in (("link up, down", ""), ("  in all but a tenth of steps", "_p10")):
            rates = " / ".join(rate_in_words(report[f"{way}{share}_mbit_s"]) for way in ("up", "down"))
            table.add_row(name, f"{rates} Mbit/s")
        times = " / ".join(f"{report[k]:.2f}" for k in ("rtt_ms", "rtt_p95_ms", "rtt_p99_ms"))
        table.add_row("RTT p50, p95, p99", f"{times} ms")
        if report["rtt_min_ms"] is not None:
            table.add_row("RTT min", f"{report['rtt_min_ms']:.2f} ms")
    table.add_row("outages", str(report["outages"]))
    if again := report["bytes_repeated_up"] + report["bytes_repeated_down"]:
        table.add_row("sent again after outages", f"{decimal(again)}, {report['steps_repeated']} steps redone")
    if report["drift"] is not None:
        table.add_row("engine v PyTorch, at most", f"{report['drift']:.2g}")
    if report["peak_memory_mb"] is not None:
        table.add_row("peak memory of this process", f"{report['peak_memory_mb']:.0f} MB")
    return table


def _why_not_measured(steps: int) -> str:
    if not KERNEL_COUNTS:
        return "needs Linux"
    return "the link was lost" if steps else "no step was finished"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"
