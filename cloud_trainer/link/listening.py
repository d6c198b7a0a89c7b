"""The addresses that a trainer's socket is bound to."""

from __future__ import annotations

from typing import Any

import zmq

from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.guard import Refusals
from adc_edge.wire.addresses import Address, listening_addresses, listening_error, parse_address
from adc_edge.wire.sockets import set_socket_options


def listen(
    context: zmq.Context[zmq.Socket[bytes]],
    router: zmq.Socket[bytes],
    bind: str,
    access: Access | None,
    refusals: Refusals,
) -> str:
    """Bind a ROUTER to all addresses of ``bind``, and return the first one with its port.

    Args:
        context: context of the socket.
        router: the socket.
        bind: ``tcp://HOST:PORT``; port ``*`` lets the system choose.
        access: secures the socket; None: everybody is admitted.
        refusals: log for those who are not.

    Raises:
        SettingError: an address cannot be bound.
        RunError: unauthenticated peers would be admitted.
    """
    addresses = listening_addresses(parse_address(bind, listening=True))
    set_socket_options(router, addresses[0].endpoint)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if access is not None:
        access.secure(context, router, refusals)
    endpoint = _bind(router, addresses[0])
    port = parse_address(endpoint).port
    for address in addresses[1:]:  # of a name
        _bind(router, address._replace(port=port))
    if access is not None:
        access.self_test(endpoint)
    return endpoint


def _bind(router: zmq.Socket[bytes], address: Address) -> str:
    """Listen on a numeric address, and return it with its port."""
    router.setsockopt(zmq.IPV6, int(":" in address.host))
    try:
        router.bind(address.endpoint)
    except zmq.ZMQError as error:
        raise listening_error(address, error.errno or 0, error.strerror) from None
    return router.getsockopt_string(zmq.LAST_ENDPOINT)


def received_frames(router: zmq.Socket[bytes]) -> list[Any]:
    """Return routing id and frames of one message; frames beyond the third are dropped as they are read."""
    frames: list[Any] = [router.recv()]
    more = True
    while more:
        frame: Any = router.recv(copy=False)
        if len(frames) < 4:
            frames.append(frame)
        more = frame.more
    return frames
