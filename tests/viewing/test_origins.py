"""Who may talk to a viewer or a demo: by the headers that browsers send."""

import pytest

from o3d_jax.viewing.origins import refusal

HERE, LAN = "127.0.0.1", "0.0.0.0"


@pytest.mark.parametrize(
    ("own", "host", "origin"),
    [
        (HERE, "127.0.0.1:8080", "http://127.0.0.1:8080"),
        (HERE, "localhost:8080", "http://localhost:8080"),
        (HERE, "[::1]:8080", "http://[::1]:8080"),
        (HERE, "127.0.0.1:8080", None),  # No browser.
        ("localhost", "localhost:9", "http://localhost:9"),
        (LAN, "192.168.7.5:8080", "http://192.168.7.5:8080"),
        (LAN, "my-machine", "https://my-machine"),
    ],
)
def test_pages_of_the_server_itself_may_come_in(own, host, origin):
    assert refusal(own, host, origin) is None


@pytest.mark.parametrize(
    ("own", "host", "origin", "said"),
    [
        (HERE, "127.0.0.1:8080", "https://evil.example", "pages of https://evil.example may not"),
        (HERE, "127.0.0.1:8080", "http://127.0.0.1:9090", "pages of http://127.0.0.1:9090"),
        (HERE, "127.0.0.1:8080", "null", "pages of null"),  # A sandboxed frame, or a file.
        (HERE, "127.0.0.1:8080", "http://127.0.0.1:8080.evil.example", "pages of http://127.0"),
        (HERE, "evil.example:8080", "http://evil.example:8080", "not called evil.example:8080"),
        (HERE, "localhost.evil.example", None, "not called localhost.evil.example"),
        (HERE, None, None, "not called None"),
        (LAN, "192.168.7.5:8080", "http://evil.example", "pages of http://evil.example"),
    ],
)
def test_pages_of_others_are_refused_and_told_why(own, host, origin, said):
    assert said in refusal(own, host, origin)
