"""The web page of the server: plain HTML, CSS and JavaScript, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from fastapi import FastAPI, Response

PATHS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("page", "elements", "inside", "learning")
    },
}
ICON_PATH = "/favicon.ico"
OPEN_PATHS = frozenset({*PATHS, ICON_PATH})
"""The page needs no key: it asks for one."""
ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" fill="#0072b2">'
    b'<rect y="1" width="16" height="4" rx="1"/><rect y="6" width="10" height="4" rx="1"/>'
    b'<rect y="11" width="5" height="4" rx="1"/></svg>'
)
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # a new version of the server has a new page
}


def add_page(api: FastAPI) -> None:
    """Adds the page at `/`, with its files; none of them is in the description of the API."""
    for path, (name, kind) in PATHS.items():
        api.get(path, include_in_schema=False)(_answer(name, kind))
    api.get(ICON_PATH, include_in_schema=False)(_icon)


def _answer(name: str, kind: str) -> Callable[[], Response]:
    def answer() -> Response:
        return Response(_content(name), media_type=kind, headers=HEADERS)

    return answer


def _icon() -> Response:
    return Response(ICON, media_type="image/svg+xml", headers=HEADERS)


@cache
def _content(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()
