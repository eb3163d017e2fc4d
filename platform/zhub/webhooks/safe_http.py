"""HTTP requests to URLs that users choose, never to addresses that only this machine or its network may reach.

A host's name is resolved here, once. All its addresses must be allowed, and the connection goes to an address that was
checked, so that a second resolution cannot give another one. SNI, certificate and ``Host`` still use the name.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from zhub.errors import AddressRefusedError, InvalidRequestError

DEADLINE_S = 15.0  # from the look-up of the name to the end of the answer
MAX_BODY_BYTES = 64 << 10  # of a response; the rest is not read
MAX_URL_CHARACTERS = 2048
NAT64 = ipaddress.ip_network("64:ff9b::/96")
LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
COMPATIBLE = ipaddress.ip_network("::/96")
NAME = re.compile(rb"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
METADATA = ipaddress.ip_address("fd00:ec2::254")  # a cloud's metadata service, beside the link-local 169.254.169.254

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True)
class Outcome:
    """How a request ended: a status, or an error if no complete response came."""

    status_code: int | None
    error: str | None
    duration_s: float
    retry_after: str | None = None
    """The response's Retry-After header, not parsed."""


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name. Raises ``httpcore.ConnectError`` if it has none."""
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise httpcore.ConnectError(f"'{host}' has no address: {exc}") from exc
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in infos))


class Outbound:
    """Sends requests, each on a connection of its own; ``allow_private`` is for receivers in the operator's network.

    Even then, link-local addresses, which serve clouds' credentials, and multicast addresses are refused.
    """

    def __init__(
        self, *, allow_private: bool, resolve: Resolve = resolve, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._backend = _CheckedBackend(resolve, allow_private)
        self._allow_private = allow_private
        self._ssl_context = ssl_context or httpx.create_ssl_context()

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, deadline_s: float = DEADLINE_S
    ) -> Outcome:
        """Send a body. Raises no error: the outcome has it. Redirects are not followed."""
        began = time.monotonic()
        status = error = retry_after = None
        try:
            async with asyncio.timeout(deadline_s):
                status, retry_after = await self._post(check_url(url, allow_private=self._allow_private), headers, body)
        except TimeoutError:
            error = f"No whole answer within {deadline_s:g} s."
        except InvalidRequestError as exc:
            error = str(exc)
        except httpcore.ProtocolError as exc:
            # Without the exception's message: it quotes the response, and the user may not own the server that sent it.
            error = f"{type(exc).__name__}: what came back is no answer by HTTP."
        except (httpcore.NetworkError, httpcore.TimeoutException) as exc:
            error = f"{type(exc).__name__}: {exc}"[:300]
        return Outcome(status, error, round(time.monotonic() - began, 3), retry_after)

    async def _post(self, url: httpx.URL, headers: Mapping[str, str], body: bytes) -> tuple[int, str | None]:
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        # Our own Host header, because httpcore's has no brackets around an IPv6 address.
        own = {"Host": url.netloc.decode("ascii")}
        async with (
            httpcore.AsyncConnectionPool(self._ssl_context, network_backend=self._backend) as pool,
            pool.stream("POST", target, headers=list((own | dict(headers)).items()), content=body) as response,
        ):
            left = MAX_BODY_BYTES
            async for piece in response.aiter_stream():
                left -= len(piece)
                if left < 0:
                    break
            retry_after = [value for name, value in response.headers if name.lower() == b"retry-after"]
            return response.status, retry_after[0].decode("latin-1") if retry_after else None


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to addresses that ``check_address`` allows."""

    def __init__(self, resolve: Resolve, allow_private: bool) -> None:
        self._resolve = resolve
        self._allow_private = allow_private
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        for address in addresses:
            check_address(host, address, allow_private=self._allow_private)
        failure: Exception = httpcore.ConnectError(f"'{host}' has no address.")
        for address in addresses:
            try:
                return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise failure


def check_url(url: str, *, allow_private: bool) -> httpx.URL:
    """Parse a URL and check it as far as that is possible without resolving its name.

    Raises:
        AddressRefusedError: its host is an address that is refused.
        InvalidRequestError: it is no http(s) URL, is http where https is required, or contains credentials.
    """
    try:
        parsed = httpx.URL(url)
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError) as exc:
        raise InvalidRequestError(f"'{url[:100]}' is not a URL: {exc}.", param="url") from exc
    if len(url) > MAX_URL_CHARACTERS:
        raise InvalidRequestError(f"The URL has {len(url)} characters, and {MAX_URL_CHARACTERS} fit.", param="url")
    if parsed.scheme not in ("http", "https") or not host:
        raise InvalidRequestError(f"'{url}' is not an address on the web: it must begin with https://.", param="url")
    if parsed.scheme == "http" and not allow_private:
        raise InvalidRequestError(
            f"'{url}' is not encrypted: use https://. An operator may allow http with ZHUB_WEBHOOK_ALLOW_PRIVATE=1.",
            param="url",
        )
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise InvalidRequestError(f"'{url}': {parsed.port} is not a port.", param="url")
    if parsed.userinfo:
        raise InvalidRequestError(
            "The URL carries a user name or a password. Leave them out: the signature proves the sender.", param="url"
        )
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not NAME.fullmatch(parsed.raw_host):
            raise InvalidRequestError(f"'{host}' is not the name of a host.", param="url") from None
        return parsed  # its addresses are checked at each request
    check_address(host, host, allow_private=allow_private)
    return parsed


def check_address(host: str, address: str, *, allow_private: bool) -> None:
    """Raise AddressRefusedError unless connections to this address of ``host``, and to those within it, are allowed."""
    for embedded in embedded_addresses(ipaddress.ip_address(address)):
        never = embedded.is_link_local or embedded.is_multicast or embedded.is_unspecified or embedded == METADATA
        public = embedded.is_global
        if isinstance(embedded, ipaddress.IPv4Address):
            never = never or embedded.is_reserved  # for IPv4 only: ipaddress counts ::1 as reserved
        else:
            public = public and not embedded.is_site_local
        private = allow_private and (embedded.is_private or embedded.is_loopback)
        if never or not (public or private):
            raise AddressRefusedError(host, address, never=never)


def embedded_addresses(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address maps or tunnels to; for any other address, the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    if address in NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)]
    if address in LOCAL_NAT64:
        # The network decides what this prefix translates to, so the address is treated as unspecified and refused.
        return [ipaddress.IPv6Address("::")]
    if address in COMPATIBLE and int(address) > 1:
        return [ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)]
    return [address]
