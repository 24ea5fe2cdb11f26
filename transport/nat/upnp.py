"""I/O: a router that speaks UPnP-IGD: miniupnpc does the talking, in threads.

Strategy: we look for the router ourselves, by multicast and by asking the gateway alone (through a
firewall on this machine only the second brings an answer), and believe only the gateway, about
only itself: miniupnpc would fetch whatever address anybody on the network names. One call at a time
a router, also after a caller has given up, so that a mapping is never made after it was ended.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from random import randrange
from typing import Any, Final, NoReturn, TypeVar

import trio

from ..errors import MappingError, MappingRefused
from .gateway import Gateway
from .routers import FIRST_WAIT, NO_ANSWER, NO_OUTER, Heard, Lease

GROUP: Final = "239.255.255.250"
SSDP_PORT: Final = 1900
"""Where devices are looked for (UPnP Device Architecture 1.1, section 1.3.2)."""
TARGETS: Final = tuple(f"urn:schemas-upnp-org:device:InternetGatewayDevice:{n}" for n in (1, 2))
SEARCH_SECONDS: Final = 2.0
"""Devices wait up to a second (MX below) before they answer."""
CALL_SECONDS: Final = 3.0
"""One call of a router's web server, a slow one."""
DATAGRAM_LIMIT: Final = 2048
URL_LIMIT: Final = 256
"""More than the descriptions of real routers need."""
OTHER_PORTS: Final = range(49152, 65536)
"""Asked for where the wished one is taken: the dynamic ports (RFC 6335)."""
TRIES: Final = 4
"""Ports that are asked for; that many are taken by others only where something is wrong."""

_SEARCH = (
    "M-SEARCH * HTTP/1.1\r\n"
    f"HOST: {GROUP}:{SSDP_PORT}\r\n"
    'MAN: "ssdp:discover"\r\n'
    "MX: 1\r\n"
    "ST: {target}\r\n\r\n"
)
_URL = re.compile(r"http://([0-9.]{7,15})(?::[0-9]{1,5})?/[!-~]*")

# What miniupnpc says (upnperrors.c), by UPnP's error number, and what it means.
_TAKEN = "ConflictInMappingEntry"  # 718
_MEANINGS = {
    "Action not authorized": "not authorized",  # 606
    "OnlyPermanentLeasesSupported": "it makes only mappings that stay forever",  # 725
    "Action Failed": "it failed",  # 501
    "Invalid Args": "it doesn't understand",  # 402
}

T = TypeVar("T")


class UpnpRouter:
    """The gateway, if it speaks UPnP-IGD."""

    protocol = "UPnP"

    def __init__(self, gateway: Gateway, port: int = SSDP_PORT) -> None:
        self._gateway, self._port = gateway, port
        self._igd: Any = None
        self._one_at_a_time = trio.CapacityLimiter(1)  # held until the thread ends

    async def ask(self) -> Heard:
        """Look for it, and for its outer address."""
        url, boot = await self._search()
        self._igd = await self._call(_select, url, self._gateway.host)
        return Heard(await self._call(_outer, self._igd), boot=boot)

    async def map(self, inner: int, outer: int, lifetime: int) -> Lease:
        """Map or renew; another outer port where the wished one is somebody else's."""
        if self._igd is None:
            await self.ask()
        host = await self._call(_outer, self._igd)
        if host is None:
            raise MappingError(NO_OUTER)
        port = await self._call(_add, self._igd, self._gateway.ours, inner, outer, lifetime)
        return Lease(host, port, lifetime)

    async def unmap(self, inner: int, outer: int) -> None:
        """Delete it."""
        if self._igd is not None:
            await self._call(_delete, self._igd, outer)

    async def _call(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do it in a thread, after what is still being done."""
        with trio.move_on_after(CALL_SECONDS):
            return await trio.to_thread.run_sync(
                work, *arguments, abandon_on_cancel=True, limiter=self._one_at_a_time
            )
        raise MappingError(NO_ANSWER)

    async def _search(self) -> tuple[str, str]:
        """Where the router's description is, and its BOOTID. Raises MappingError."""
        found = None
        with _socket(self._gateway.ours) as sock, trio.move_on_after(SEARCH_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._shout, sock)
                found = await self._listen(sock)
                nursery.cancel_scope.cancel()
        if found is None:
            raise MappingError(NO_ANSWER)
        return found

    async def _shout(self, sock: trio.socket.SocketType) -> None:
        wait = FIRST_WAIT
        while True:
            for host in (GROUP, self._gateway.host):
                for target in TARGETS:
                    await _send(sock, _SEARCH.format(target=target).encode(), (host, self._port))
            await trio.sleep(wait)
            wait *= 2

    async def _listen(self, sock: trio.socket.SocketType) -> tuple[str, str]:
        while True:
            data, (host, *_) = await sock.recvfrom(DATAGRAM_LIMIT)
            if host == self._gateway.host and (found := description(data, host)):
                return found


def description(data: bytes, gateway: str) -> tuple[str, str] | None:
    """What an answer to a search tells: where the description is, and BOOTID (empty: not told).

    None where it isn't an answer of an internet gateway device that is this gateway itself.
    """
    first, *lines = data.decode("latin-1").split("\r\n")
    headers = {name.strip().upper(): value.strip() for name, _, value in map(_parts, lines)}
    if not re.fullmatch(r"HTTP/1\.[01] 200( .*)?", first) or headers.get("ST") not in TARGETS:
        return None
    url = headers.get("LOCATION", "")
    return (url, headers.get("BOOTID.UPNP.ORG", "")) if is_at(url, gateway) else None


def _parts(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def is_at(url: str, gateway: str) -> bool:
    """Whether this is a plain address at the gateway, however it is read."""
    match = _URL.fullmatch(url)
    return match is not None and match[1] == gateway and len(url) <= URL_LIMIT


def _socket(ours: str) -> trio.socket.SocketType:
    """A socket for multicast in the gateway's network. Raises MappingError."""
    with contextlib.ExitStack() as opened:
        try:
            sock = opened.enter_context(trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            raw = socket.inet_aton(ours)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, raw)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
        except OSError as error:
            raise MappingError(error.strerror or str(error)) from error
        opened.pop_all()
    return sock


async def _send(sock: trio.socket.SocketType, data: bytes, to: tuple[str, int]) -> None:
    try:
        await sock.sendto(data, to)
    except OSError:
        return  # no multicast here, or nothing listens there; it goes out again


# -- in threads ------------------------------------------------------------------------------------


def _select(url: str, gateway: str) -> Any:
    """miniupnpc's router, from its description."""
    import miniupnpc

    igd = miniupnpc.UPnP()
    control = _said(igd.selectigd, url)
    if not is_at(control, gateway):
        raise MappingError("its description leads elsewhere")
    return igd


def _outer(igd: Any) -> str | None:
    """The outer address, if there is one."""
    try:
        host = IPv4Address(_said(igd.externalipaddress))
    except ValueError:
        return None
    return None if host.is_unspecified else str(host)


def _add(igd: Any, ours: str, inner: int, outer: int, lifetime: int) -> int:
    """Map a port: the one that was free."""
    for port in (
        outer,
        *(randrange(OTHER_PORTS.start, OTHER_PORTS.stop) for _ in range(TRIES - 1)),
    ):
        try:
            igd.addportmapping(port, "TCP", ours, inner, "p2pnode", "", lifetime)
        except Exception as error:
            if str(error) != _TAKEN:
                _raise(error)
        else:
            return port
    raise MappingRefused("the ports are taken")


def _delete(igd: Any, outer: int) -> None:
    _said(igd.deleteportmapping, outer, "TCP", "")


def _said(call: Callable[..., T], *arguments: Any) -> T:
    """What miniupnpc returns; its errors are bare Exceptions."""
    try:
        return call(*arguments)
    except Exception as error:
        _raise(error)


def _raise(error: Exception) -> NoReturn:
    meaning = _MEANINGS.get(str(error))
    raise MappingRefused(meaning) if meaning else MappingError(str(error)) from error
