"""A program that has its port mapped, tells what comes of it, and answers whoever comes in.

`python tests/mapper.py PROTOCOL PORT LEASE CHECK`; PROTOCOL is "any" or one of the three. The tests
in test_natlab_mapping.py run it behind routers.
"""

from __future__ import annotations

import signal
import sys

import trio

from p2pnode.transport.address import Address
from p2pnode.transport.nat.mapping import Mapped, all_routers


async def answer(stream: trio.SocketStream) -> None:
    """Say that somebody is here."""
    async with stream:
        await stream.send_all(b"here")


async def tell(mapped: Mapped) -> None:
    """Print each change."""
    last = ""
    while True:
        if mapped.detail != last:
            last = mapped.detail
            print(last, flush=True)
        await trio.sleep(0.02)


async def main(protocol: str, port: int, lease: int, check: float) -> None:
    """Until SIGTERM."""
    mapped = Mapped(
        lease=lease,
        check=check,
        routers=lambda gateway: [
            router
            for router in all_routers(gateway, b"twelve bytes")
            if protocol in ("any", router.protocol)
        ],
    )
    mapped.bound(Address("0.0.0.0", port))
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_tcp, answer, port)
            nursery.start_soon(tell, mapped)
            await nursery.start(mapped.run)
            await signals.__anext__()
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    _, protocol, port, lease, check = sys.argv
    trio.run(main, protocol, int(port), int(lease), float(check))
