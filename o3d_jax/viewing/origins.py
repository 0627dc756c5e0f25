"""Which web pages may talk to a server here: those that came from it, and no others.

A browser lets any page open a WebSocket to any host, also to one of its own machine, and says in
the header Origin which site the page is from. viser does not look at it, so that a page elsewhere
on the web could drive a demo that runs here. So a request is refused

- if its Origin is another host and port than its Host: it is from a page of another site;
- if the server listens on this machine alone, and Host is any other name: then somebody made that
  name lead here, to have pages of their own site pass for ours ("DNS rebinding").

Programs other than browsers send no Origin, and are no danger: nobody else's page runs in them.
"""

import contextlib
import http
import ipaddress
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit


def refusal(own: str, host: str | None, origin: str | None) -> str | None:
    """Returns why a request is refused, or None if it may come in.

    `own` is the address that the server listens on, the others are the request's headers.
    """
    if is_loopback(own) and not is_loopback(urlsplit(f"//{host}").hostname or ""):
        return f"this server is for its own machine, and not called {host}"
    if origin is not None and urlsplit(origin).netloc != host:
        return f"pages of {origin} may not use this server"
    return None


def is_loopback(host: str) -> bool:
    """Returns whether a name or an address always means the machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def only_own_pages(own: str) -> Iterator[None]:
    """Makes servers that viser starts in the block refuse pages of others.

    viser's one call of `websockets` cannot be given arguments, so it is caught there.
    """
    from websockets.asyncio import server  # pyright: ignore[reportMissingImports]  # viser's

    real = server.serve

    def serve(*given: Any, process_request: Any, **options: Any) -> Any:
        def checked(connection: Any, request: Any) -> Any:
            headers = request.headers
            if why := refusal(own, headers.get("Host"), headers.get("Origin")):
                return connection.respond(http.HTTPStatus.FORBIDDEN, f"{why}\n")
            return process_request(connection, request)

        return real(*given, process_request=checked, **options)

    server.serve = serve
    try:
        yield
    finally:
        server.serve = real
