"""One question to a STUN server, for tests that only want to know what it sees."""

from p2pnode.transport.address import Address
from p2pnode.transport.nat.stun import tcp_binding


async def mapped_tcp(server: Address, local: Address) -> Address:
    """From where a server sees a TCP connection from `local`. Raises StunError."""
    async with tcp_binding(server, local) as binding:
        return binding.mapped
