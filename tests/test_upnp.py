"""UPnP-IGD: what we believe of an answer to a search, and miniupnpc against a router of our own.

The router is two small servers on the loopback network, with real threads and real time; nothing in
these tests waits for a time to pass, except the one whose router is silent.
"""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.transport.errors import MappingError, MappingRefused
from p2pnode.transport.nat import upnp
from p2pnode.transport.nat.gateway import Gateway
from p2pnode.transport.nat.routers import NO_ANSWER, NO_OUTER, Heard, Lease
from p2pnode.transport.nat.upnp import TARGETS, UpnpRouter, description, is_at

GATEWAY = "192.168.1.1"
URL = "http://192.168.1.1:5000/rootDesc.xml"
OUTER = "203.0.113.7"


def answer(**changes: str) -> bytes:
    """What miniupnpd 2.3.1 answers to a search, with some headers changed."""
    headers = {
        "CACHE-CONTROL": "max-age=120",
        "ST": TARGETS[0],
        "USN": f"uuid:00000000-0000-0000-0000-000000000001::{TARGETS[0]}",
        "EXT": "",
        "SERVER": "Debian/6.1 UPnP/1.1 MiniUPnPd/2.3.1",
        "LOCATION": URL,
        "OPT": '"http://schemas.upnp.org/upnp/1/0/"; ns=01',
        "BOOTID.UPNP.ORG": "1795539142",
    } | changes
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


def test_an_answer_is_read() -> None:
    """Where the description is, and the router's BOOTID, which older ones don't tell."""
    assert description(answer(), GATEWAY) == (URL, "1795539142")
    assert description(answer().replace(b"BOOTID", b"X"), GATEWAY) == (URL, "")
    assert description(answer().replace(b"LOCATION", b"Location"), GATEWAY) == (URL, "1795539142")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        answer(ST="upnp:rootdevice"),
        answer(ST="urn:schemas-upnp-org:device:MediaServer:1"),
        answer().replace(b"200 OK", b"404 Not Found"),
        answer().replace(b"HTTP/1.1 200 OK", b"NOTIFY * HTTP/1.1"),
        answer(LOCATION=""),
        answer(LOCATION="http://192.168.1.66:5000/rootDesc.xml"),
    ],
    ids=range(7),
)
def test_what_is_no_router_is_passed_over(data: bytes) -> None:
    """Other devices, other messages, and descriptions elsewhere."""
    assert description(data, GATEWAY) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://192.168.1.1/",
        "http://192.168.1.1@evil.example/",
        "http://evil.example#192.168.1.1/",
        "http://192.168.1.1.evil.example/",
        "http://192.168.1.1\\@198.51.100.9/",
        "http://198.51.100.9/?192.168.1.1",
        "http://192.168.1.1:80@198.51.100.9/",
        "http://192.168.1.1:999999/",
        "http://[::ffff:192.168.1.1]/",
        "http://router/",
        "http://192.168.1.1",
        "http://192.168.1.1/a b",
        "http://192.168.1.1/" + "x" * 300,
        "ftp://192.168.1.1/",
    ],
)
def test_only_the_gateway_is_ever_fetched_from(url: str) -> None:
    """However the address is written: nobody on the network can have us fetch something else."""
    assert not is_at(url, GATEWAY)


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda b: answer() + b))
def test_any_bytes_give_an_address_at_the_gateway_or_nothing(data: bytes) -> None:
    """A parser has no other end."""
    found = description(data, GATEWAY)
    assert found is None or found[0].startswith(f"http://{GATEWAY}")


# -- miniupnpc and a router ------------------------------------------------------------------------

SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
ROOT = f"""<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0">
<specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>{TARGETS[0]}</deviceType><deviceList>
<device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType>
<serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType>
<controlURL>/other</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s</SCPDURL>
</service></serviceList><deviceList>
<device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType>
<serviceList><service><serviceType>{SERVICE}</serviceType>
<controlURL>CONTROL</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s</SCPDURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>
"""
SOAP = (
    '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
    's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>{}</s:Body></s:Envelope>'
)
FAULT = (
    "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
    '<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{0}</errorCode>'
    "<errorDescription>{0}</errorDescription></UPnPError></detail></s:Fault>"
)


@dataclass
class FakeIgd:
    """A router that speaks UPnP."""

    outer: str = OUTER
    control: str = "/ctl"
    error: int = 0  # for every mapping
    taken: set[int] = field(default_factory=set)  # ports of others
    mapped: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    hold: threading.Event | None = None  # a mapping is made and answered only then
    holding: bool = False
    ssdp: int = 0
    http: int = 0

    def act(self, action: str, said: dict[str, str]) -> dict[str, str] | int:
        """The answer to one action, or UPnP's error number."""
        if action == "GetExternalIPAddress":
            return {"NewExternalIPAddress": self.outer}
        port = int(said["NewExternalPort"])
        if action == "DeletePortMapping":
            return {} if self.mapped.pop(port, None) else 714
        if self.hold:
            self.holding = True
            self.hold.wait(5)
        if self.error or port in self.taken:
            return self.error or 718
        inner, lease = int(said["NewInternalPort"]), int(said["NewLeaseDuration"])
        self.mapped[port] = (said["NewInternalClient"], inner, lease)
        return {}

    async def answer(self, sock: trio.socket.SocketType) -> None:
        """Answer searches."""
        location = f"http://127.0.0.1:{self.http}/rootDesc.xml"
        while True:
            _, sender = await sock.recvfrom(2000)
            await sock.sendto(answer(LOCATION=location), sender)


def handler(igd: FakeIgd) -> type[BaseHTTPRequestHandler]:
    """Its web server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(200, ROOT.replace("CONTROL", igd.control))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            action = self.headers["SOAPAction"].strip('"').rpartition("#")[2]
            said = igd.act(action, dict(re.findall(r"<(New\w+)>([^<]*)</", body)))
            if isinstance(said, int):
                self._reply(500, SOAP.format(FAULT.format(said)))
            else:
                fields = "".join(f"<{name}>{text}</{name}>" for name, text in said.items())
                tag = f"u:{action}Response"
                text = f'<{tag} xmlns:u="{SERVICE}">{fields}</{tag}>'
                self._reply(200, SOAP.format(text))

        def _reply(self, code: int, text: str) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Content-Type", "text/xml")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    return Handler


@contextmanager
def web(igd: FakeIgd) -> Iterator[None]:
    """The router's web server, in threads of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(igd)) as server:
        igd.http = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@asynccontextmanager
async def home(igd: FakeIgd) -> AsyncIterator[UpnpRouter]:
    """The router, as we speak to it."""
    with web(igd), trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        gateway = Gateway("127.0.0.1", "127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(igd.answer, sock)
            yield UpnpRouter(gateway, sock.getsockname()[1])
            nursery.cancel_scope.cancel()


def test_ask_map_and_end() -> None:
    """The whole life, with a lease, for our own address."""

    async def main() -> None:
        igd = FakeIgd()
        async with home(igd) as router:
            assert await router.ask() == Heard(OUTER, boot="1795539142")
            assert await router.map(6000, 6001, 60) == Lease(OUTER, 6001, 60)
            assert igd.mapped == {6001: ("127.0.0.1", 6000, 60)}
            await router.unmap(6000, 6001)
            assert igd.mapped == {}

    trio.run(main)


def test_another_port_where_one_is_taken() -> None:
    """Somebody else in the house has it; a free one is asked for."""

    async def main() -> None:
        igd = FakeIgd(taken={6000})
        async with home(igd) as router:
            lease = await router.map(6000, 6000, 60)
            assert igd.mapped == {lease.port: ("127.0.0.1", 6000, 60)}

    trio.run(main)


def test_it_ends_where_all_ports_are_taken() -> None:
    """A few are asked for, no more."""

    async def main() -> None:
        async with home(FakeIgd(taken=set(range(65536)))) as router:
            with pytest.raises(MappingRefused, match="the ports are taken"):
                await router.map(6000, 6000, 60)

    trio.run(main)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (606, "not authorized"),
        (725, "it makes only mappings that stay forever"),
        (501, "it failed"),
    ],
)
def test_refusals(error: int, says: str) -> None:
    """What UPnP's errors mean; a mapping without a lease is never asked for (725)."""

    async def main() -> None:
        igd = FakeIgd(error=error)
        async with home(igd) as router:
            with pytest.raises(MappingRefused) as caught:
                await router.map(6000, 6000, 60)
            assert caught.value.args == (says,)
            assert igd.mapped == {}

    trio.run(main)


@pytest.mark.parametrize("outer", ["", "0.0.0.0", "nonsense"])
def test_a_router_without_an_outer_address(outer: str) -> None:
    """Nothing is mapped then."""

    async def main() -> None:
        igd = FakeIgd(outer=outer)
        async with home(igd) as router:
            assert (await router.ask()).host is None
            with pytest.raises(MappingError) as caught:
                await router.map(6000, 6000, 60)
            assert caught.value.args == (NO_OUTER,)
            assert igd.mapped == {}

    trio.run(main)


def test_a_description_that_leads_elsewhere() -> None:
    """What a router's description names isn't called unless it is the router's."""

    async def main() -> None:
        async with home(FakeIgd(control="http://127.0.0.2:9/ctl")) as router:
            with pytest.raises(MappingError, match="leads elsewhere"):
                await router.ask()

    trio.run(main)


def test_a_router_that_vanishes() -> None:
    """Its web server is gone: an error, not a bare exception of miniupnpc."""

    async def main() -> None:
        async with home(FakeIgd()) as router:
            await router.ask()
        with pytest.raises(MappingError):
            await router.unmap(6000, 6000)

    trio.run(main)


def test_a_mapping_is_never_made_after_it_was_ended() -> None:
    """Cancelled while the router takes its time: deleting waits for that, and comes last."""

    async def main() -> None:
        igd = FakeIgd(hold=threading.Event())
        assert igd.hold is not None
        async with home(igd) as router:
            await router.ask()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(router.map, 6000, 6000, 60)
                while not igd.holding:
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(router.unmap, 6000, 6000)
                igd.hold.set()
            assert igd.mapped == {}

    trio.run(main)


def test_silence_is_an_error_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a search nor a call waits for ever."""

    async def main() -> None:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            router = UpnpRouter(Gateway("127.0.0.1", "127.0.0.1"), sock.getsockname()[1])
            with pytest.raises(MappingError, match=NO_ANSWER):
                await router.ask()
            await router.unmap(6000, 6000)  # it never was there
        igd = FakeIgd(hold=threading.Event())
        assert igd.hold is not None
        async with home(igd) as router:
            await router.ask()
            with pytest.raises(MappingError, match=NO_ANSWER):
                await router.map(6000, 6000, 60)
            igd.hold.set()

    monkeypatch.setattr(upnp, "SEARCH_SECONDS", 0.05)
    monkeypatch.setattr(upnp, "CALL_SECONDS", 0.5)
    trio.run(main)
