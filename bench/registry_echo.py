"""A libp2p peer that answers every question with as many bytes as it is told: ``python -m bench.registry_echo BYTES``.

It prints its peer id and its address, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import secrets
import sys

from ncn_registry.swarm import Swarm

from .network import free_ports


async def _main(size: int) -> None:
    async def asked(question: bytes, peer: str) -> bytes:
        return bytes(size)

    swarm = Swarm(
        secrets.token_bytes(32),
        [f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}"],
        heard=lambda topic, data, peer: None,
        validate=lambda key, value: None,
        asked=asked,
    )
    async with swarm:
        print(swarm.peer_id, swarm.addresses[0], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
