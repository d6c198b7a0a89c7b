"""Which addresses may be used, and how."""

from __future__ import annotations

import pytest

from adc_edge.endpoint import check_endpoint
from adc_edge.errors import SettingError


@pytest.mark.parametrize(
    "endpoint", ["tcp://10.0.0.1:5700", "tcp://example.com:1", "tcp://[2001:db8::1]:5", "tcp://*:5"]
)
def test_anything_but_loopback_must_be_asked_for(endpoint: str) -> None:
    with pytest.raises(SettingError, match="loopback"):
        check_endpoint(endpoint, insecure=False)
    assert check_endpoint(endpoint, insecure=True) == endpoint
    assert check_endpoint(endpoint, insecure=False, keys=True) == endpoint


def test_keys_and_insecure_contradict_each_other() -> None:
    with pytest.raises(SettingError, match="leave one out"):
        check_endpoint("tcp://127.0.0.1:5700", insecure=True, keys=True)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:5700", "ipc://x", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:port"])
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(SettingError, match="tcp://HOST:PORT"):
        check_endpoint(endpoint, insecure=True)
