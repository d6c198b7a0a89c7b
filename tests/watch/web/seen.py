"""Faults and requests of the pages of a real browser, and what a page shows."""

from __future__ import annotations

from playwright.sync_api import BrowserContext, Page


class Seen:
    """Errors of the pages of a context, and the addresses that they asked."""

    def __init__(self, context: BrowserContext) -> None:
        self.faults: list[str] = []
        self.requests: list[str] = []
        context.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        context.on("weberror", lambda error: self.faults.append(str(error.error)))
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("dialog", lambda dialog: self.faults.append(f"dialog {dialog.message}"))


def text_of(page: Page, name: str) -> str:
    """The value of a tile."""
    return str(page.evaluate(_TILE, name))


_TILE = """name => [...document.querySelectorAll(".tiles div")]
  .find(box => box.firstChild.textContent === name)?.lastChild.textContent"""
