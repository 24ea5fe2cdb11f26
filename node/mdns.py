"""I/O: multicast DNS (RFC 6762), by python-zeroconf with threads and an event loop of its own.

All calls block, so they are made in threads; what zeroconf logs is kept off the screen. It is
imported when it is needed: most nodes never do.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from .lan_service import Service

TYPE: Final = "_p2pnode._tcp.local."

RESOLVE_SECONDS: Final = 3.0
"""An answer in a local network takes milliseconds, on a sleepy Wi-Fi a second."""

SERVER_CHARACTERS: Final = 20
"""Of the peer ID's end, in the machine's name: 116 bits are nobody else's."""

TTL_SECONDS: Final = 120
"""Who vanishes without a goodbye is gone after this time (RFC 6762 section 10 says so of hosts)."""


class Mdns(Protocol):
    """Multicast DNS. All calls block; they raise OSError where it can't work."""

    def browse(self, tell: Callable[[str, bool], None]) -> None:
        """Look for services; `tell(name, there)`, from any thread: one comes, changes or goes."""

    def register(self, service: Service) -> None:
        """Let others find this service; returns when they have been told."""

    def resolve(self, name: str) -> Service | None:
        """Ask a service where it is; None where no answer comes in RESOLVE_SECONDS."""

    def close(self) -> None:
        """Say goodbye, and end."""


class Zeroconf:
    """The real one, on the interfaces with these addresses."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        import zeroconf

        logging.getLogger("zeroconf").setLevel(logging.CRITICAL + 1)
        self._module: Any = zeroconf
        self._zeroconf = zeroconf.Zeroconf(interfaces=list(hosts), use_asyncio=False)
        self._browser: Any = None

    def browse(self, tell: Callable[[str, bool], None]) -> None:
        """As Mdns."""
        removed = self._module.ServiceStateChange.Removed

        def handler(*, name: str, state_change: object, **_: object) -> None:
            tell(name, state_change is not removed)

        self._browser = self._module.ServiceBrowser(self._zeroconf, TYPE, handlers=[handler])

    def register(self, service: Service) -> None:
        """As Mdns; a name that somebody else has taken gets a number."""
        info = self._module.ServiceInfo(
            TYPE,
            f"{service.name}.{TYPE}",
            port=service.port,
            properties=dict(service.about),
            server=f"p2pnode-{service.name[-SERVER_CHARACTERS:]}.local.",
            parsed_addresses=list(service.hosts),
            host_ttl=TTL_SECONDS,
            other_ttl=TTL_SECONDS,
        )
        try:
            self._zeroconf.register_service(info, allow_name_change=True)
        except self._module.Error as error:
            raise OSError(str(error) or type(error).__name__) from error

    def resolve(self, name: str) -> Service | None:
        """As Mdns; of what strangers say nothing gets further than here but plain values."""
        try:
            info = self._zeroconf.get_service_info(TYPE, name, int(RESOLVE_SECONDS * 1000))
            about = info.decoded_properties if info else {}
        except (self._module.Error, AssertionError, ValueError):  # no name, or we are closing
            return None
        if info is None:
            return None
        texts = {str(key): str(value) for key, value in about.items() if value is not None}
        return Service(name, info.port or 0, tuple(info.parsed_scoped_addresses()), texts)

    def close(self) -> None:
        """As Mdns."""
        with contextlib.suppress(self._module.Error):  # it took too long
            self._zeroconf.close()
