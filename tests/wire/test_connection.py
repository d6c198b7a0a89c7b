"""A connection that is cut raises LinkLost, whatever the instant, and never waits for ever."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import zmq

from adc_edge.wire.connection import Connection, LinkLost


@pytest.mark.timeout(30)
def test_a_link_cut_between_the_check_and_the_send_raises_and_does_not_wait(
    eventually: Callable[[Callable[[], bool]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as trainer:
        port = trainer.bind_to_random_port("tcp://127.0.0.1")
        connection = Connection(context, f"tcp://127.0.0.1:{port}", None, lambda: False)
        try:
            connection.send(b"header", b"piece")
            assert trainer.recv_multipart()[1:] == [b"header", b"piece"]
            looked = connection.writable

            def look_and_lose() -> None:
                looked()
                trainer.close(0)
                eventually(lambda: not connection._socket.poll(0, zmq.POLLOUT))

            monkeypatch.setattr(connection, "writable", look_and_lose)
            sent = connection.framed
            with pytest.raises(LinkLost, match="connection closed"):
                connection.send(b"header", b"piece")
            assert connection.framed == sent
        finally:
            connection.close()
