"""The connection that a message came over, as the answers to it need it."""

from __future__ import annotations

from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.registry import RequestContext
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.wire.tcp import tcp_info


def request_context(asked: QueuedMessage, congestion: str | None, access: Access | None) -> RequestContext:
    """Return the context of a message; ``congestion``: the congestion control towards its device, if that was set."""
    peer, live = asked.peer, tcp_info(asked.peer.fd)  # a device cannot see how fast its trainer sends
    name = None if access is None else access.name(peer.owner)
    down, limited = (live.delivery_mbit_s, live.app_limited) if live else (None, False)
    rtt_ms = live.rtt_ms if live else None
    return RequestContext(asked.route, peer, congestion, down, limited, asked.up_mbit_s, name, rtt_ms)
