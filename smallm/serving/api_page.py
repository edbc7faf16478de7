"""The page of /docs: Swagger UI from an installed package, so that nothing comes from elsewhere.

The OpenAPI document itself may need a key; the page asks for one and sends it with each request.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from smallm.errors import SmallmError

PACKAGE = "fastapi_offline"  # only its copy of Swagger UI is used
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>SmaLLM: the interface</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<form id="access" class="swagger-ui"><div class="wrapper">
<label>Key, where the server needs one: <input id="key" type="password" autocomplete="off"></label>
<button class="btn">Use</button>
</div></form>
<main id="interface"></main>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/page.js"></script>
</html>
"""
SCRIPT = """"use strict";
const key = document.getElementById("key");
function show() {
  SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#interface",
    tryItOutEnabled: true,
    validatorUrl: null,
    requestInterceptor(request) {
      if (key.value) request.headers.Authorization = `Bearer ${key.value}`;
      return request;
    },
  });
}
document.getElementById("access").addEventListener("submit", (event) => {
  event.preventDefault();
  show();
});
show();
"""


@cache
def _bundled(name: str) -> bytes:
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SmallmError(f"the page of /docs needs the package {PACKAGE.replace('_', '-')}")
    return (Path(found.origin).parent / "static" / name).read_bytes()


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "/docs": ("text/html; charset=utf-8", PAGE.encode),
    "/docs/page.js": ("text/javascript; charset=utf-8", SCRIPT.encode),
    "/docs/swagger-ui.css": ("text/css; charset=utf-8", lambda: _bundled("swagger-ui.css")),
    "/docs/swagger-ui-bundle.js": (
        "text/javascript; charset=utf-8",
        lambda: _bundled("swagger-ui-bundle.js"),
    ),
}
PATHS = frozenset(FILES)
"""They hold nothing of the server: a browser can open them only if they need no key."""


def api_file(path: str) -> tuple[bytes, dict[str, str]]:
    """Content and headers of one of PATHS."""
    kind, content = FILES[path]
    headers = {"content-type": kind, "content-security-policy": CONTENT_SECURITY_POLICY}
    return content(), headers
