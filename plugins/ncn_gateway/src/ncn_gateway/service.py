"""The gateway as a service: database, nodes, tasks, and the servers in front of them."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config as HypercornConfig
from hypercorn.typing import Framework

from ncn_framework.errors import ConfigError, NodeLost, UnknownTask
from ncn_framework.models import FREE, InferenceRequest, Leases, Route, Settlement, SignedReceipt
from ncn_framework.signing import address_from_hex, address_hex
from ncn_framework.statements import Evidence
from ncn_framework.states import State
from ncn_framework.wire import gateway_pb2
from ncn_framework.wire.gateway_pb2_grpc import (
    add_GatewayClientServiceServicer_to_server,
    add_GatewayComputeServiceServicer_to_server,
)

from . import __version__
from .client_service import ClientService
from .config import GatewaySettings
from .directory import CapacityLease, Directory
from .http import Application, build_app
from .info import GatewayInfo
from .links import Execution
from .metrics import Metrics
from .openai_api import openai_routes
from .sessions import ComputeService
from .store import Store
from .task import Task
from .tasks import Tasks

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["Gateway"]

log = logging.getLogger(__name__)


class Gateway:
    """What the hooks of the gateway's plugin stand for.

    Args:
        node: whose settings and life cycle it uses.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings = node.settings(GatewaySettings)
        try:
            allowed = frozenset(map(address_from_hex, self.settings.allowed_nodes))
        except ValueError as cause:
            raise ConfigError(f"setting gateway.allowed_nodes: {cause}") from cause
        self.directory = Directory(allowed, self.settings.max_queue)
        self.metrics = Metrics()
        self._tasks: asyncio.Future[Tasks] | None = None

    # --- hooks ---

    def reserve(self, request: InferenceRequest, route: Route) -> CapacityLease:
        """Return a slot of the chosen node; it expires with the request."""
        return self.directory.lease(route.node, request.deadline_ms)

    def execute(self, request: InferenceRequest, leases: Leases) -> Execution:
        """Return what the leased node sends.

        Raises:
            NodeLost: it left since it was leased.
        """
        node = leases.route.node
        entry = self.directory.nodes.get(node)
        if entry is None or entry.link is None:
            raise NodeLost(f"node {address_hex(node)} left before the request reached it")
        slot = next(lease for lease in leases if lease.kind == "capacity")
        shown = next((lease.authorization for lease in leases if lease.authorization is not None), None)
        execution = Execution(entry.link, request, slot, shown)
        if self._tasks is not None and self._tasks.done():
            self._tasks.result().executing(request.request_id, execution)
        return execution

    def settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Awaitable[Settlement] | None:
        """Settle in ``free`` mode, in which nothing is owed; decline every other."""
        entry = self.directory.nodes.get(receipt.receipt.node)
        if entry is not None:
            entry.observe(receipt.receipt.finished_ms - receipt.receipt.started_ms)
        return _settle_free() if request.payment == FREE else None

    async def recall(self, request_id: bytes) -> State | None:
        """Return where a request rests; waits until the database is open."""
        task = await self._task(request_id)
        return None if task is None else task.state

    async def disclose(self, request_id: bytes) -> Evidence | None:
        """Return a request with its whole answer, running or stored; waits until the database is open."""
        task = await self._task(request_id)
        return None if task is None else task.evidence()

    async def _task(self, request_id: bytes) -> Task | None:
        if self._tasks is None:
            self._tasks = asyncio.get_running_loop().create_future()
        tasks = await asyncio.shield(self._tasks)
        try:
            return await tasks.get(request_id)
        except UnknownTask:
            return None

    def stand(self, account: bytes, out: bool, reason: str) -> None:
        """Give an account no more work, or give it work again."""
        if account in self.directory.nodes and out is not (account in self.directory.out):
            log.warning("node %s %s: %s", address_hex(account), "gets no more work" if out else "gets work", reason)
        self.directory.stand(account, out, reason)

    # --- the servers ---

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Listen until the context is left, then drain: nothing new, running requests finish, the store closes."""
        settings, node = self.settings, self.node
        url = settings.database or f"sqlite:///{node.home / 'gateway.db'}"
        signer = node.signer
        software = f"ncn-gateway {__version__}"
        async with Store(url) as store:
            tasks = Tasks(node.lifecycle, self.directory, store, settings)
            if self._tasks is None:
                self._tasks = asyncio.get_running_loop().create_future()
            self._tasks.set_result(tasks)
            compute = ComputeService(
                node.lifecycle, self.directory, signer.address, node.domain, settings.heartbeat_interval_ms, software
            )

            def unready() -> str | None:
                if tasks.draining:
                    return "this gateway is shutting down"
                return (
                    None
                    if any(map(len, self.directory.models.values()))
                    else "no compute node is connected; start one: ncn serve compute"
                )

            info = GatewayInfo(signer.address, node.domain, software, settings.payment_modes, unready)
            free = FREE in settings.payment_modes
            openai = openai_routes(tasks, node.domain.chain_id, settings.max_body_bytes, free)
            closing = asyncio.Event()
            app = build_app(
                tasks,
                info,
                max_body_bytes=settings.max_body_bytes,
                routes=[*node.plugins.http_routes(node), *openai],
                closing=closing,
            )
            async with self._grpc(compute, ClientService(tasks, info)), self._http(app):
                node.endpoints["address"] = address_hex(signer.address)
                try:
                    yield
                finally:
                    deadline_ms = node.lifecycle.clock() + int(node.drain_timeout_s * 1000)
                    closing.set()
                    compute.drain(deadline_ms)
                    await tasks.drain(node.drain_timeout_s)
                    await compute.close()

    @asynccontextmanager
    async def _grpc(self, compute: ComputeService, client: ClientService) -> AsyncIterator[None]:
        host, port = self.settings.host, self.settings.grpc_port
        size = self.settings.max_body_bytes + (1 << 20)  # room for what is around the tensors
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ]
        )
        add_GatewayClientServiceServicer_to_server(client, server)
        add_GatewayComputeServiceServicer_to_server(compute, server)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = [service.full_name for service in gateway_pb2.DESCRIPTOR.services_by_name.values()]
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        try:
            bound = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as cause:
            raise _in_use(host, port, "gateway.grpc_port") from cause
        await server.start()
        for name in ("", *names):
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        self.node.endpoints["grpc"] = f"{host}:{bound}"
        try:
            yield
        finally:
            await checks.enter_graceful_shutdown()
            await server.stop(grace=1)

    @asynccontextmanager
    async def _http(self, app: Application) -> AsyncIterator[None]:
        host = self.settings.host
        sockets = [
            _listen(host, self.settings.http_port, "gateway.http_port"),
            _listen(host, self.settings.websocket_port, "gateway.websocket_port"),
        ]
        ports = [sock.getsockname()[1] for sock in sockets]
        self.node.endpoints["http"] = f"http://{host}:{ports[0]}"
        self.node.endpoints["websocket"] = f"ws://{host}:{ports[1]}/ws"
        config = HypercornConfig()
        config.graceful_timeout = 5
        config.keep_alive_timeout = 75
        config.keep_alive_max_requests = 1_000_000_000  # the default closes a busy connection in the middle of its work
        config.include_server_header = False
        config.h2_max_concurrent_streams = 256
        config.websocket_max_message_size = self.settings.max_body_bytes
        config.errorlog = logging.getLogger("hypercorn.error")
        config.bind = [f"fd://{sock.detach()}" for sock in sockets]
        stop = asyncio.Event()
        server = asyncio.create_task(hypercorn_serve(cast(Framework, app), config, shutdown_trigger=stop.wait))
        server.add_done_callback(self._http_ended)
        try:
            yield
        finally:
            stop.set()
            await server

    def _http_ended(self, server: asyncio.Task[None]) -> None:
        if not server.cancelled() and (error := server.exception()) is not None:
            self.node.fail(error)


async def _settle_free() -> Settlement:
    return Settlement(FREE)


def _listen(host: str, port: int, setting: str) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as cause:
        raise _in_use(host, port, setting) from cause


def _in_use(host: str, port: int, setting: str) -> ConfigError:
    return ConfigError(
        f"cannot listen on {host}:{port} ({setting}); stop the program that does, or choose another port: "
        f"`ss -ltnp` shows who listens"
    )
