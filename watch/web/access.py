"""Access to the page: each request is checked before anything of it is used, and every answer has strict headers."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from adc_edge.watch.own_hosts import OwnHosts
from adc_edge.wire.addresses import Address

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Application = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

TOKEN_BYTES = 32
_LONGEST_TARGET = 1024  # characters of path and query
_LONGEST_HEADERS = 16384  # bytes
_OPEN = ("/healthz",)  # tells nothing
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


def new_token() -> str:
    """Return a secret for an address: 32 random bytes as URL-safe text."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class Refusal(NamedTuple):
    """An answer to a request that is refused: its status and the reason in words."""

    status: int
    text: str


class PageAccess:
    """Checks each request, then hands it on; adds the headers of every answer.

    Args:
        application: answers the requests that may pass.
        address: where the server listens.
        token: the secret that each request must show; empty: none is needed.
    """

    def __init__(self, application: _Application, address: Address, token: str = "") -> None:
        self._application, self._token = application, token.encode()
        self._own = OwnHosts(address.host)
        self._cookie = f"adc_edge_{address.port}"  # cookies do not heed ports

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer a request, as ASGI has it."""
        headers = list(_HEADERS)

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        if refusal := self._refusal(scope):
            headers.append((b"connection", b"close"))
            await _say(refusal, send_with_headers)
            return
        if self._is_token(_query_token(scope)):  # a path of _OPEN is answered without any
            headers.append((b"set-cookie", self._new_cookie()))
        await self._application(scope, receive, send_with_headers)

    def _refusal(self, scope: _Scope) -> Refusal | None:
        found = _headers(scope)
        if scope["method"] not in ("GET", "HEAD"):
            return Refusal(405, "only GET: this page is for reading alone")
        if found.get(b"content-length", [b"0"]) != [b"0"] or b"transfer-encoding" in found:
            return Refusal(413, "a request here has no body")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > _LONGEST_TARGET:
            return Refusal(414, "the address is too long")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _LONGEST_HEADERS:
            return Refusal(431, "the headers are too long")
        hosts = found.get(b"host", [])
        if len(hosts) != 1 or not self._own.has(hosts[0].decode("latin-1")):
            return Refusal(421, "the header Host names another server; use the address that was printed")
        if found.get(b"sec-fetch-site") == [b"cross-site"] and found.get(b"sec-fetch-mode") != [b"navigate"]:
            return Refusal(403, "a page of another site asked")
        if scope["path"] not in _OPEN and not self._has_token(scope, found):
            return Refusal(401, "open the address that the command has printed: the token is part of it")
        return None

    def _has_token(self, scope: _Scope, found: dict[bytes, list[bytes]]) -> bool:
        if not self._token:
            return True
        shown = [_query_token(scope), *(_bearer(value) for value in found.get(b"authorization", []))]
        shown += [_cookie_value(value, self._cookie) for value in found.get(b"cookie", [])]
        return sum(self._is_token(value) for value in shown) > 0

    def _is_token(self, shown: bytes) -> bool:
        return hmac.compare_digest(shown, self._token) and bool(self._token)

    def _new_cookie(self) -> bytes:
        return b"%s=%s; HttpOnly; SameSite=Strict; Path=/" % (self._cookie.encode(), self._token)


def _headers(scope: _Scope) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name, []).append(value)
    return found


def _query_token(scope: _Scope) -> bytes:
    values = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=None).get("token", [""])
    return values[0].encode("utf-8", "replace") if len(values) == 1 else b""


def _bearer(value: bytes) -> bytes:
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _cookie_value(value: bytes, name: str) -> bytes:
    try:
        morsel = SimpleCookie(value.decode("latin-1")).get(name)
    except CookieError:
        return b""
    return morsel.value.encode("utf-8", "replace") if morsel else b""


async def _say(refusal: Refusal, send: _Send) -> None:
    body = refusal.text.encode() + b"\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
