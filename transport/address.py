"""HOST:PORT, where a peer or a tracker can be reached.

Strategy: an Address is normalised when it is built (IPv6 compressed, IPv4-mapped IPv6 as
IPv4, names in lower case), so that equal places are equal values, and str() gives text
that parses back to the same value.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from .errors import AddressError

PORT_LIMIT: Final = 65535
NAME_LIMIT: Final = 253
"""Characters of a DNS name (RFC 1035 section 2.3.4, without the final dot)."""

UNICAST6: Final = ip_network("2000::/3")
"""All global IPv6 addresses there are (RFC 4291); NAT64's, with an IPv4 one inside, lie outside."""
TRANSLATED: Final = ip_network("2002::/16")
"""6to4: an IPv4 address inside, which could be a private one."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_NUMBER_AT_THE_END: Final = re.compile(r"(?:.*\.)?[0-9]+")
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_HOST_PORT: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_WRITE: Final = "write HOST:PORT, such as 1.2.3.4:6000, [2001:db8::1]:6000 or name.example:6000"


@dataclass(frozen=True, slots=True)
class Address:
    """A host (IPv4, IPv6 or a DNS name) and a TCP port; port 0 stands for any free one."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= PORT_LIMIT:
            raise AddressError(f"port {self.port} is not from 0 to {PORT_LIMIT}")
        object.__setattr__(self, "host", _normal_host(self.host))

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> "Address":
        """Read "1.2.3.4:6000", "[::1]:6000" or "name.example:6000".

        The port may be left out where there is a default. Raises AddressError.
        """
        match = _HOST_PORT.fullmatch(text.strip())
        if not match or not match[1]:
            raise AddressError(f"{text[:300]!r}: {_WRITE}")
        host, port = match[1], match[2] or default_port
        if port is None:
            raise AddressError(f"{text[:300]!r} has no port: {_WRITE}")
        if host.startswith("[") and ":" not in host:
            raise AddressError(f"{text[:300]!r}: brackets are for IPv6 addresses; {_WRITE}")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _normal_host(host: str) -> str:
    try:
        return _normal_ip(ip_address(host))
    except ValueError:
        name = host.lower().removesuffix(".")
    plain = host.isascii() and len(name) <= NAME_LIMIT and _NAME.fullmatch(name)
    if not plain or _NUMBER_AT_THE_END.fullmatch(name):
        raise AddressError(f"{host[:300]!r} is neither an IP address nor a name: {_WRITE}")
    return name


def _normal_ip(ip: IPv4Address | IPv6Address) -> str:
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        if ip.scope_id is not None and not _ZONE.fullmatch(ip.scope_id):
            raise AddressError(f"{ip.scope_id[:64]!r} is no network interface: {_WRITE}")
    return str(ip)


def owner(host: str) -> str:
    """What one owner holds: an IPv4 address, or an IPv6 /64; another text stands for itself."""
    try:
        ip = ip_address(host)
    except ValueError:
        return host
    return host if ip.version == 4 else f"{int(ip) >> 64:x}/64"


def is_name(host: str) -> bool:
    """Whether a host is a DNS name and no IP address."""
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


def is_public(host: str) -> bool:
    """Whether a host is an IP address that means the same machine everywhere in the internet.

    Not so are private, shared, loopback, link-local, multicast and documentation addresses
    (IANA's special-purpose registries), and names.
    """
    if is_name(host):
        return False
    ip = ip_address(host)
    if not ip.is_global or ip.is_multicast:
        return False
    return ip.version == 4 or (ip in UNICAST6 and ip not in TRANSLATED)
