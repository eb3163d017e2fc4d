"""Requests to strangers' addresses: to public ones only, to the very one that was checked, and never for long."""

import asyncio
import http.server
import ipaddress
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from zhub.errors import AddressRefusedError, InvalidRequestError
from zhub.webhooks.safe_http import MAX_BODY_BYTES, Outbound, Outcome, check_address, check_url

PRIVATE = ("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "::1", "fd12::1")
NEVER = (
    "169.254.169.254", "fe80::1", "fd00:ec2::254", "224.0.0.1", "ff02::1", "0.0.0.0", "::",
    "255.255.255.255", "240.0.0.1", "fec0::1", "64:ff9b:1::7f00:1",
)  # fmt: skip
# The same IPv4 addresses in the clothes of IPv6.
DISGUISES: tuple[Callable[[int], int], ...] = (
    lambda v4: 0xFFFF << 32 | v4,  # ::ffff:0:0/96, mapped
    lambda v4: v4,  # ::/96, compatible
    lambda v4: 0x2002 << 112 | v4 << 80,  # 2002::/16, 6to4
    lambda v4: 0x64_FF9B << 96 | v4,  # 64:ff9b::/96, NAT64
    lambda v4: 0x2001_0000 << 96 | 0x0808_0808 << 64 | (v4 ^ 0xFFFF_FFFF),  # 2001::/32, Teredo's client
)


@pytest.mark.parametrize("address", (*PRIVATE, *NEVER, "100.64.0.1"))
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    with pytest.raises(AddressRefusedError, match="is not public"):
        check_address("hook.example.com", address, allow_private=False)


@pytest.mark.parametrize("v4", [a for a in (*PRIVATE, *NEVER) if ":" not in a])
@pytest.mark.parametrize("disguise", DISGUISES, ids=["mapped", "compatible", "6to4", "nat64", "teredo"])
def test_it_is_refused_in_every_disguise(v4: str, disguise: Callable[[int], int]) -> None:
    dressed = ipaddress.IPv6Address(disguise(int(ipaddress.IPv4Address(v4))))
    with pytest.raises(AddressRefusedError):
        check_address("hook.example.com", str(dressed), allow_private=False)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_a_public_address_is_allowed(address: str) -> None:
    check_address("hook.example.com", address, allow_private=False)


@pytest.mark.parametrize("address", PRIVATE)
def test_an_operator_may_allow_private_addresses(address: str) -> None:
    check_address("hook.local", address, allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_what_clouds_keep_their_credentials_at_is_refused_even_then(address: str) -> None:
    with pytest.raises(AddressRefusedError):
        check_address("hook.local", address, allow_private=True)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/hook", "use https"),
        ("ftp://example.com/hook", "must begin with https"),
        ("file:///etc/passwd", "must begin with https"),
        ("https:///hook", "must begin with https"),
        ("example.com/hook", "must begin with https"),
        ("https://user:secret@example.com/", "user name or a password"),
        ("https://user@example.com/", "user name or a password"),
        ("https://127.0.0.1/", "is not public"),
        ("https://[::1]/", "is not public"),
        ("https://[::ffff:10.0.0.1]/", "is not public"),
        ("https://169.254.169.254/latest/meta-data", "is not public"),
        ("https://example.com:99999/", "99999 is not a port"),
        ("https://[::1/", "is not a URL"),
        ("https://xn--/", "is not a URL"),
        ("https://exa mple.com/", "is not the name of a host"),
        ("https://../", "is not the name of a host"),
        ("https://example.com/" + "a" * 2048, "2048 fit"),
    ],
)
def test_a_url_that_cannot_be_sent_to_is_refused_when_it_is_given(url: str, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=why) as refused:
        check_url(url, allow_private=False)
    assert refused.value.param == "url"


class Receiver:
    """A server of this machine, and what it was asked."""

    def __init__(self, port: int, requests: "list[dict[str, Any]]", names: list[str | None]) -> None:
        self.port = port
        self.requests = requests
        self.names = names
        """What each TLS client asked for by SNI."""


def serve(answer: Callable[[Any], None], ssl_context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    requests: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            requests.append({"path": self.path, "host": self.headers["host"], "body": body})
            answer(self)

        def log_message(self, *_arguments: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that goes away in the middle is what some of these tests are about

    names: list[str | None] = []
    with Server(("127.0.0.1", 0), Handler) as server:
        if ssl_context is not None:
            ssl_context.sni_callback = lambda _socket, name, _context: names.append(name)
            server.socket = ssl_context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Receiver(server.server_port, requests, names)
        finally:
            server.shutdown()
            thread.join()


def no_content(handler: Any) -> None:
    handler.send_response(204)
    handler.end_headers()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    yield from serve(no_content)


def post(outbound: Outbound, url: str, deadline_s: float = 10.0) -> Outcome:
    return asyncio.run(outbound.post(url, {"content-type": "application/json"}, b"{}", deadline_s=deadline_s))


def resolver(*answers: Sequence[str]) -> Any:
    """Answers one look-up after the other; the last answer stays."""
    left = list(answers)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


def test_a_body_arrives_under_the_name_that_was_asked_for(receiver: Receiver) -> None:
    outbound = Outbound(allow_private=True, resolve=resolver(["127.0.0.1"]))
    assert post(outbound, f"http://hook.example.com:{receiver.port}/a?b=c").status_code == 204
    assert receiver.requests == [{"path": "/a?b=c", "host": f"hook.example.com:{receiver.port}", "body": b"{}"}]


def test_a_name_that_means_this_machine_is_refused_before_anything_is_sent(receiver: Receiver) -> None:
    outbound = Outbound(allow_private=False, resolve=resolver(["127.0.0.1"]))
    outcome = post(outbound, f"https://hook.example.com:{receiver.port}/")
    assert (outcome.status_code, receiver.requests) == (None, [])
    assert outcome.error is not None and "'hook.example.com' has the address 127.0.0.1" in outcome.error


def test_one_private_address_among_public_ones_is_enough_to_refuse_a_name() -> None:
    outbound = Outbound(allow_private=False, resolve=resolver(["8.8.8.8", "10.0.0.1"]))
    outcome = post(outbound, "https://hook.example.com/")
    assert outcome.error is not None and "10.0.0.1" in outcome.error


def test_a_name_that_changes_its_address_after_the_check_gets_no_second_look_up(receiver: Receiver) -> None:
    # Where the connection asked the resolver again, it would reach the receiver, which is what rebinding wants.
    dead = socket.create_server(("127.0.0.2", receiver.port))
    dead.close()
    outbound = Outbound(allow_private=True, resolve=resolver(["127.0.0.2"], ["127.0.0.1"]))
    outcome = post(outbound, f"http://hook.example.com:{receiver.port}/")
    assert (outcome.status_code, receiver.requests) == (None, [])


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "localhost"])
def test_a_spelling_that_the_systems_resolver_takes_for_this_machine_is_refused(receiver: Receiver, host: str) -> None:
    outcome = post(Outbound(allow_private=False), f"https://{host}:{receiver.port}/")
    assert outcome.error is not None and "is not public" in outcome.error
    assert receiver.requests == []


def test_the_next_address_is_tried_where_one_does_not_answer(receiver: Receiver) -> None:
    outbound = Outbound(allow_private=True, resolve=resolver(["127.0.0.3", "127.0.0.1"]))
    assert post(outbound, f"http://hook.example.com:{receiver.port}/").status_code == 204


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_an_answer_and_not_followed(status: int) -> None:
    def redirect(handler: Any) -> None:
        handler.send_response(status)
        handler.send_header("location", "/elsewhere")
        handler.send_header("content-length", "0")
        handler.end_headers()

    for receiver in serve(redirect):
        outcome = post(Outbound(allow_private=True), f"http://127.0.0.1:{receiver.port}/")
        assert (outcome.status_code, len(receiver.requests)) == (status, 1)


@pytest.mark.parametrize("status", [200, 429, 503])
@pytest.mark.parametrize("given", ["120", "Fri, 31 Dec 1999 23:59:59 GMT", None])
def test_an_outcome_has_what_the_answer_says_of_asking_again(status: int, given: str | None) -> None:
    def answer(handler: Any) -> None:
        handler.send_response(status)
        if given is not None:
            handler.send_header("Retry-After", given)
        handler.send_header("content-length", "0")
        handler.end_headers()

    for receiver in serve(answer):
        outcome = post(Outbound(allow_private=True), f"http://127.0.0.1:{receiver.port}/")
        assert (outcome.status_code, outcome.retry_after) == (status, given)


def test_a_receiver_that_never_answers_costs_no_more_than_the_deadline() -> None:
    release = threading.Event()

    def hang(_handler: Any) -> None:
        release.wait(10)

    for receiver in serve(hang):
        outcome = post(Outbound(allow_private=True), f"http://127.0.0.1:{receiver.port}/", deadline_s=0.3)
        release.set()
        assert outcome.status_code is None and outcome.error == "No whole answer within 0.3 s."


def test_a_receiver_that_answers_drop_by_drop_costs_no_more_than_the_deadline() -> None:
    released = threading.Event()

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        while not released.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    for receiver in serve(drip):
        outcome = post(Outbound(allow_private=True), f"http://127.0.0.1:{receiver.port}/", deadline_s=0.5)
        released.set()
        assert outcome.error == "No whole answer within 0.5 s."


def test_an_endless_answer_is_read_up_to_its_limit() -> None:
    sent = 0

    def endless(handler: Any) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"x" * MAX_BODY_BYTES)
            sent += MAX_BODY_BYTES

    for receiver in serve(endless):
        assert post(Outbound(allow_private=True), f"http://127.0.0.1:{receiver.port}/").status_code == 200
    assert sent < 1000 * MAX_BODY_BYTES


def test_what_is_no_http_is_an_error_that_quotes_nothing_of_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                asked = b""
                while not asked.endswith(b"{}"):
                    asked += connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        outcome = post(Outbound(allow_private=True), f"http://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join()
    assert outcome.status_code is None and outcome.error == (
        "RemoteProtocolError: what came back is no answer by HTTP."
    )


def test_nobody_at_home_is_an_error_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    outcome = post(Outbound(allow_private=True), f"http://127.0.0.1:{port}/")
    assert outcome.error is not None and outcome.error.startswith("ConnectError")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of hook.example.com, in one file."""
    path = tmp_path_factory.mktemp("tls") / "pair.pem"
    argv = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", "/CN=hook.example.com", "-addext", "subjectAltName=DNS:hook.example.com"),
        *("-keyout", str(path), "-out", str(path.with_suffix(".crt"))),
    ]
    subprocess.run(argv, check=True, capture_output=True)
    with path.open("a") as pair:
        pair.write(path.with_suffix(".crt").read_text())
    return path


@pytest.fixture
def tls_receiver(certificate: Path) -> Iterator[Receiver]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from serve(no_content, context)


def test_the_pinned_connection_asks_for_and_checks_the_certificate_of_the_name(
    tls_receiver: Receiver, certificate: Path
) -> None:
    outbound = Outbound(
        allow_private=True,
        resolve=resolver(["127.0.0.1"]),
        ssl_context=ssl.create_default_context(cafile=str(certificate)),
    )
    assert post(outbound, f"https://hook.example.com:{tls_receiver.port}/").status_code == 204
    assert tls_receiver.names == ["hook.example.com"]


@pytest.mark.parametrize("host", ["other.example.com", "hook.example.com"], ids=["another name", "nobody vouches"])
def test_a_certificate_of_another_name_or_of_nobody_is_refused(
    tls_receiver: Receiver, certificate: Path, host: str
) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate)) if host != "hook.example.com" else None
    outbound = Outbound(allow_private=True, resolve=resolver(["127.0.0.1"]), ssl_context=trusted)
    outcome = post(outbound, f"https://{host}:{tls_receiver.port}/")
    assert outcome.error is not None and "certificate verify failed" in outcome.error
    assert tls_receiver.requests == []
