"""A trainer of another version refuses without a seal. Its words reach the user, and give the terminal no orders."""

from __future__ import annotations

import threading

import zmq
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.wire.headers import pack_header
from adc_edge.wire.messages import Refused


def test_a_refusal_without_a_seal_is_shown_without_its_control_characters() -> None:
    refusal = pack_header(Refused("version", "\x1b[2J\x1b]0;mine\x07 you", "an older one\x9b2J", "upgrade\x1b[31m"))
    over = threading.Event()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as trainer:
        port = trainer.bind_to_random_port("tcp://127.0.0.1")

        def answer() -> None:
            while not over.is_set():
                if trainer.poll(20):
                    route, *_ = trainer.recv_multipart()
                    trainer.send_multipart([route, refusal, b""])

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            result = CliRunner().invoke(main, ["link", "--trainer", f"tcp://127.0.0.1:{port}"], color=True)
        finally:
            over.set()
            thread.join()
    assert result.exit_code
    assert "\\x1b[2J\\x1b]0;mine\\x07 you" in result.output
    assert not {"\x1b", "\x07", "\x9b"} & set(result.output)
