"""Each mend of libp2p beside the fault: where the fault is gone, the mend can go too."""

from __future__ import annotations

import gc
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio

import ncn_registry.swarm  # noqa: F401 - imports libp2p without the warning of one of its dependencies

# isort: split

from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.config import ConnectionConfig
from libp2p.network.swarm import Swarm as Network
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.records.record import make_signed_put_record
from libp2p.records.validator import BlankValidator, NamespacedValidator
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils.varint import encode_uvarint, read_varint_prefixed_bytes_limited

from ncn_registry.swarm import patches
from ncn_registry.swarm.addresses import Multiaddr
from ncn_registry.swarm.limits import DHT_PROTOCOL
from ncn_registry.swarm.patches import admission, bounds, gossip, handlers, protocol, slots, writes
from ncn_registry.swarm.patches.patch import Patch

ECHO = TProtocol("/test/echo/1")
KAD = TProtocol(DHT_PROTOCOL)
LOOPBACK = [Multiaddr("/ip4/127.0.0.1/tcp/0")]


@pytest.fixture(autouse=True)
def mended() -> None:
    patches.apply()


def room_for(connections: int) -> ConnectionConfig:
    return ConnectionConfig(max_connections=connections, high_watermark=connections, min_connections=0, low_watermark=0)


@asynccontextmanager
async def running_host(number: int, config: ConnectionConfig | None = None) -> AsyncIterator[IHost]:
    host = new_host(
        key_pair=create_new_key_pair(number.to_bytes(32, "big")),
        connection_config=config or room_for(100),
    )
    async with host.run(LOOPBACK), AsyncExitStack() as stack:
        stack.push_async_callback(host.close)
        yield host


async def connect(host: IHost, to: IHost) -> None:
    await host.connect(PeerInfo(to.get_id(), to.get_transport_addrs()))


def new_dht(host: IHost) -> KadDHT:
    validator = NamespacedValidator({"ncn": BlankValidator()})
    return KadDHT(host, DHTMode.SERVER, validator=validator, validator_changed=True)


async def send(stream: INetStream, message: bytes) -> None:
    await stream.write(encode_uvarint(len(message)) + message)


async def echo(stream: INetStream) -> None:
    await stream.write(await stream.read(4))
    await stream.close()


async def echoes(host: IHost, to: IHost) -> bool:
    """Tell whether a stream to a peer works."""
    with trio.move_on_after(5):
        stream = await host.new_stream(to.get_id(), [ECHO])
        await stream.write(b"ping")
        return await stream.read(4) == b"ping"
    return False


async def pings(host: IHost, to: IHost) -> bool:
    """Tell whether a peer's DHT answers."""
    try:
        with trio.move_on_after(5):
            stream = await host.new_stream(to.get_id(), [KAD])
            await send(stream, Message(type=Message.MessageType.PING).SerializeToString())
            return bool(await read_varint_prefixed_bytes_limited(stream, 1024))
    except Exception:
        return False
    return False


def holds(patch: Patch, scenario: Callable[[], Awaitable[bool]]) -> None:
    """Check that a scenario goes well with a patch, and not without it: false, or any error, is not well."""
    assert trio.run(scenario), f"the patch does not mend it: {patch.fault}"
    with patch.absent(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library leaves sockets open when it fails
        try:
            well = trio.run(scenario)
        except (Exception, BaseExceptionGroup):
            well = False
        gc.collect()
    assert not well, f"libp2p is mended, the patch can go: {patch.fault}"


def test_the_dht_has_a_protocol_of_its_own() -> None:
    async def scenario() -> bool:
        host = new_host(key_pair=create_new_key_pair(b"\1" * 32))
        KadDHT(host, DHTMode.SERVER, protocol_prefix=TProtocol("/ncn"))
        return KAD in host.get_mux().handlers

    holds(protocol.PATCH, scenario)


def test_an_oversized_record_is_not_kept() -> None:
    async def scenario() -> bool:
        async with running_host(1) as server, running_host(2) as client:
            dht, key = new_dht(server), b"/ncn/node/big"
            await connect(client, server)
            stream = await client.new_stream(server.get_id(), [KAD])
            record = make_signed_put_record(key, b"x" * 200_000, client.get_private_key())
            message = Message(type=Message.MessageType.PUT_VALUE, key=key, record=record)
            with trio.move_on_after(10):
                try:
                    await send(stream, message.SerializeToString())
                    await read_varint_prefixed_bytes_limited(stream, 1 << 20)
                except Exception:
                    return not dht.value_store.store
            return False

    holds(bounds.PATCH, scenario)


def test_a_cancelled_write_leaves_the_connection_usable() -> None:
    async def scenario() -> bool:
        async with running_host(1) as server, running_host(2) as client:
            server.set_stream_handler(ECHO, echo)
            await connect(client, server)
            muxed = client.get_network().get_connections(server.get_id())[0].muxed_conn
            assert isinstance(muxed, Yamux)
            stream, write = await client.new_stream(server.get_id(), [ECHO]), muxed.secured_conn.write
            with trio.CancelScope() as scope:

                async def cancelled_write(data: bytes) -> None:
                    scope.cancel()
                    await write(data)

                muxed.secured_conn.write = cancelled_write  # type: ignore[method-assign]
                await stream.write(b"ping")
            muxed.secured_conn.write = write  # type: ignore[method-assign]
            return await echoes(client, server)

    holds(writes.PATCH, scenario)


def test_a_handler_that_raises_leaves_the_host_alive() -> None:
    async def scenario() -> bool:
        async with running_host(1) as server, running_host(2) as client:
            raised = trio.Event()

            async def bad(stream: INetStream) -> None:
                raised.set()
                raise RuntimeError("a handler's fault")

            server.set_stream_handler(TProtocol("/test/bad/1"), bad)
            server.set_stream_handler(ECHO, echo)
            await connect(client, server)
            with suppress(StreamFailure):  # it may be reset before it is negotiated
                await client.new_stream(server.get_id(), [TProtocol("/test/bad/1")])
            await raised.wait()
            return await echoes(client, server)

    holds(handlers.PATCH, scenario)


@asynccontextmanager
async def running_gossip(host: IHost) -> AsyncIterator[Pubsub]:
    router = GossipSub([PROTOCOL_ID_V11], 6, 4, 12, heartbeat_interval=1)
    service = Pubsub(host, router)
    async with background_trio_service(service), background_trio_service(router):
        await service.wait_until_ready()
        yield service


async def gossip_survives(message: rpc_pb2.Message, validator: Callable[[ID, rpc_pb2.Message], bool]) -> bool:
    """Send a message on topic ``bad``; tell whether one on topic ``good`` is heard afterwards."""
    async with running_host(1) as server, running_host(2) as client, running_gossip(server) as there:
        there.set_topic_validator("bad", validator, False)
        await there.subscribe("bad")
        good = await there.subscribe("good")
        async with running_gossip(client) as here:
            await connect(client, server)
            await here.wait_for_peer(server.get_id())
            await here.wait_for_subscription(server.get_id(), "good")
            stream = await client.new_stream(server.get_id(), [PROTOCOL_ID_V11])
            if message.ByteSize():
                await send(stream, rpc_pb2.RPC(publish=[message]).SerializeToString())
            else:
                await here.publish("bad", b"look at this")
            await here.publish("good", b"still there?")
            with trio.move_on_after(5):
                return (await good.get()).data == b"still there?"
    return False


def test_a_topic_validator_that_raises_leaves_gossip_alive() -> None:
    def validator(forwarder: ID, message: rpc_pb2.Message) -> bool:
        raise RuntimeError("a validator's fault")

    holds(gossip.PATCH, lambda: gossip_survives(rpc_pb2.Message(), validator))


def test_a_key_that_does_not_parse_leaves_gossip_alive() -> None:
    # A hashed peer id holds no key, so the one that travels with the message is parsed.
    hashed = b"\x12\x20" + b"\7" * 32
    message = rpc_pb2.Message(
        data=b"x", topicIDs=["bad"], from_id=hashed, seqno=b"\0" * 8, key=b"\xff\xff", signature=b"\1"
    )
    holds(gossip.PATCH, lambda: gossip_survives(message, lambda forwarder, _: True))


def test_idle_streams_of_one_peer_leave_the_dht_to_others() -> None:
    async def scenario() -> bool:
        async with running_host(1) as server, running_host(2) as idler, running_host(3) as other:
            dht = new_dht(server)
            await connect(idler, server)
            await connect(other, server)
            for _ in range(20):
                with suppress(StreamFailure):  # that it is refused is right
                    await idler.new_stream(server.get_id(), [KAD])
            with trio.move_on_after(5):
                while dht._inbound_limiter.borrowed_tokens < 12:
                    await trio.sleep(0.01)
            return await pings(other, server)

    holds(slots.PATCH, scenario)


def test_an_idle_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "STREAM_S", 0.2)

    async def scenario() -> bool:
        async with running_host(1) as server, running_host(2) as client:
            dht = new_dht(server)
            await connect(client, server)
            stream = await client.new_stream(server.get_id(), [KAD])
            with trio.move_on_after(3):
                try:
                    await stream.read(1)
                except Exception:
                    return dht._inbound_limiter.borrowed_tokens == 0
            return False

    holds(slots.PATCH, scenario)


def test_a_closed_connection_gives_its_slot_back() -> None:
    async def scenario() -> bool:
        async with running_host(1, room_for(4)) as server:
            for number in range(2, 8):
                async with running_host(number) as client:
                    await connect(client, server)
                with trio.fail_after(5):
                    while server.get_connected_peers():
                        await trio.sleep(0.01)
            return True

    holds(admission.PATCH, scenario)


def test_half_open_connections_of_one_address_leave_room_for_others() -> None:
    async def scenario() -> bool:
        async with running_host(1, room_for(20)) as server, running_host(2) as client:
            network = server.get_network()
            assert isinstance(network, Network)
            port = int(server.get_transport_addrs()[0].value_for_protocol("tcp"))
            with MuteSockets() as sockets:
                for _ in range(40):
                    sockets.open("127.0.0.2", port)
                with trio.move_on_after(1):
                    while network._inbound_limiter.available_tokens:
                        await trio.sleep(0.01)
                with trio.fail_after(5):
                    await connect(client, server)
            return True

    holds(admission.PATCH, scenario)


class MuteSockets:
    """Raw connections that never say a word."""

    def __enter__(self) -> MuteSockets:
        self._sockets: list[socket.socket] = []
        return self

    def open(self, source: str, port: int) -> None:
        self._sockets.append(socket.create_connection(("127.0.0.1", port), 5, (source, 0)))

    def __exit__(self, *error: object) -> None:
        for each in self._sockets:
            each.close()
