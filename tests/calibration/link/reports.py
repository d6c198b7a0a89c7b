"""Reports of links that nobody measured, for tests of what is made from them."""

from __future__ import annotations

from adc_edge.calibration.link.report import LinkReport


def measured(up: float | None, down: float | None, rtt_ms: float) -> LinkReport:
    """A report with these rates in Mbit/s and this round trip; what was not measured is None."""
    return LinkReport(
        time="2026-01-01T00:00:00+00:00",
        trainer="tcp://127.0.0.1:5700",
        trainer_version=None,
        seconds=15.0,
        bytes=3_000_000,
        bytes_up=1_000_000,
        bytes_down=2_000_000,
        rtt_ms=rtt_ms,
        rtt_min_ms=rtt_ms,
        rtt_p50_ms=rtt_ms,
        rtt_p95_ms=rtt_ms,
        rtt_p99_ms=rtt_ms,
        jitter_ms=0.0,
        pings=100,
        up_mbit_s=up,
        up_p10_mbit_s=up,
        down_mbit_s=down,
        down_p10_mbit_s=down,
        both_up_mbit_s=up,
        both_down_mbit_s=down,
        rtt_up_ms=None,
        rtt_down_ms=None,
        rtt_both_ms=None,
        rpm=None,
        loads={},
        by_size=[],
        retransmitted_up=None,
        retransmitted_down=None,
        congestion=None,
        congestion_down=None,
        bbr=None,
        bulk=True,
        paused_s=0.0,
        notes=[],
        series=[],
    )
