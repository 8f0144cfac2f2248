"""The compute node as a service: its models in their worker pools, its key, its gateways."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ncn_framework import digests
from ncn_framework.errors import ModelError, NoCapacity, UnknownModel
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import (
    FREE,
    Chunk,
    InferenceRequest,
    Lease,
    Leases,
    ModelManifest,
    NodeInfo,
    Record,
    Route,
    Settlement,
    Signature,
    SignedReceipt,
)
from ncn_framework.signing import address_hex
from ncn_framework.wire.convert import node_record
from ncn_framework.wire.convert_records import GATEWAY
from ncn_framework.wire.convert_subnets import ENDORSED_SUBNET

from . import __version__, bundled, runtimes, sandbox
from .config import ComputeSettings
from .found import FoundGateways
from .joined import JoinedSubnets
from .manifest import find_models, verify
from .session import GatewaySession
from .workers import WorkerPool

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["Compute"]

log = logging.getLogger(__name__)

_MOST_GATEWAYS = 16  # of subnets, where find_gateways does not say how many
_FLOATS = ("FP16", "BF16", "FP32", "FP64")
_FIRST_CONNECTION_S = 2.0  # how long a node that starts waits for a gateway before it says that it runs


class Slot:
    """One of a node's slots, held while the context is entered.

    Raises:
        NoCapacity: all are taken.
    """

    leaves_at_once = True

    def __init__(self, compute: Compute, request: InferenceRequest) -> None:
        self.compute, self.request = compute, request

    async def __aenter__(self) -> Lease:
        compute = self.compute
        if compute.in_flight >= compute.settings.capacity:
            raise NoCapacity(
                f"all {compute.settings.capacity} slots of node {address_hex(compute.signer.address)} are taken"
            )
        compute.in_flight += 1
        return Lease("slot", compute.in_flight, self.request.deadline_ms)

    async def __aexit__(self, *_: object) -> None:
        self.compute.in_flight -= 1


class Compute:
    """What the hooks of the compute plugin stand for.

    Args:
        node: whose settings and life cycle it uses.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings = node.settings(ComputeSettings)
        self.signer = node.signer
        self.in_flight = 0
        self.models: dict[bytes, tuple[ModelManifest, Path]] = {}
        self.pools: dict[bytes, WorkerPool] = {}
        self.sessions: list[GatewaySession] = []
        self.joined = JoinedSubnets(self)
        self.found = FoundGateways(self, self.settings.find_gateways or (_MOST_GATEWAYS if self.joined else 0))
        self.root = (self.settings.model_path or node.home / "models").expanduser().absolute()
        self._record: Record | None = None
        self._connected = asyncio.Event()
        self._pools = contextlib.AsyncExitStack()  # entered by the service

    # --- hooks ---

    def register(self, record: Record) -> None:
        """Announce this node's own record to every gateway it is connected to; dial the gateway that another names."""
        if record.owner == self.signer.address:
            for session in self.sessions if record.kind == "node" else ():
                session.announce(record)
        elif record.kind == ENDORSED_SUBNET:
            self.joined.take(record)
        elif record.kind == GATEWAY and self.joined:
            self.joined.take_gateway(record)
        elif record.kind == GATEWAY:
            self.found.take(record)

    def reserve(self, request: InferenceRequest) -> Slot:
        """Return one of this node's slots, to be entered."""
        return Slot(self, request)

    def execute(self, request: InferenceRequest, leases: Leases) -> AsyncGenerator[Chunk, None] | None:
        """Run the request in its model's jail; decline models of another runtime."""
        pool = self.pools.get(leases.route.manifest.digest)
        return None if pool is None else _execute(pool, request)

    def sign(self, receipt: SignedReceipt) -> Signature | None:
        """Sign a receipt for what this node has done."""
        if receipt.receipt.node != self.signer.address:
            return None
        return self.signer.sign(digests.receipt_digest(self.node.domain, receipt.receipt))

    def settle(self, request: InferenceRequest) -> Awaitable[Settlement] | None:
        """Book nothing for what is free; decline every other payment mode."""
        return _settle_free() if request.payment == FREE else None

    # --- what sessions need ---

    def route(self, request: InferenceRequest) -> Route:
        """Return the route to this node itself.

        Raises:
            UnknownModel: this node does not serve the model.
        """
        found = self.models.get(request.model)
        if found is None:
            raise UnknownModel(f"node {address_hex(self.signer.address)} does not serve 0x{request.model.hex()}")
        manifest, directory = found
        return Route(self.signer.address, manifest, directory=directory)

    async def renew(self) -> Record:
        """Sign a fresh record of this node, publish it, and return it."""
        now = now_ms()
        sequence = max(now, self._record.sequence + 1 if self._record else 0)
        info = NodeInfo(
            node=self.signer.address,
            models=tuple(manifest for manifest, _ in self.models.values()),
            capacity=self.settings.capacity,
            sandbox=self.settings.sandbox_mode,
            software=f"ncn-compute {__version__}",
        )
        unsigned = node_record(info, sequence, now + self.settings.record_lifetime_ms)
        signature = self.signer.sign(digests.record_digest(self.node.domain, unsigned))
        record = Record(**{**vars(unsigned), "signature": signature.value})
        self._record = record
        await self.node.lifecycle.register(record)
        return record

    def on_connected(self) -> None:
        """Note that some gateway is connected."""
        self._connected.set()

    # --- the service ---

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Load the models into their jails, then keep the gateways connected until the context is left; drain."""
        await sandbox.require(self.settings.sandbox_mode)
        self.models = await asyncio.to_thread(self._find_models)
        async with AsyncExitStack() as stack:
            self._pools = stack
            own = [(m, folder) for m, folder in self.models.values() if m.runtime in runtimes.available()]
            pools = [self._pool(manifest, directory) for manifest, directory in own]
            entering = (stack.enter_async_context(pool) for pool in pools)
            for result in await asyncio.gather(*entering, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
            self.pools = {manifest.digest: pool for (manifest, _), pool in zip(own, pools, strict=True)}
            await self.renew()  # for who hears of it in another way than by a session
            finds = self.settings.find_gateways or self.joined
            named = not finds or "gateway_addr" in self.settings.model_fields_set
            self.sessions = [GatewaySession(self, target) for target in self.settings.gateway_addr if named]
            running = [asyncio.create_task(session.run()) for session in self.sessions]
            running += [asyncio.create_task(part) for part in (self._keep_renewed(), self.joined.run())]
            for task in running:
                task.add_done_callback(self._ended)
            if self.sessions:
                with contextlib.suppress(TimeoutError):  # a gateway that is not there yet is dialled all the while
                    await asyncio.wait_for(self._connected.wait(), _FIRST_CONNECTION_S)
            self.node.endpoints["address"] = address_hex(self.signer.address)
            self.node.endpoints["models"] = ", ".join(sorted(m.name for m, _ in self.models.values()))
            self.node.endpoints["sandbox"] = self.settings.sandbox_mode
            try:
                yield
            finally:
                await asyncio.gather(*(session.drain(self.node.drain_timeout_s) for session in self.sessions))
                await self.found.close()
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.node.fail(error)

    async def _keep_renewed(self) -> None:
        while True:
            await asyncio.sleep(self.settings.record_lifetime_ms / 2000)
            await self.renew()
            await self.joined.say(again=True)

    async def serve_model(self, manifest: ModelManifest, directory: Path) -> None:
        """Serve one model more; its files were verified.

        Raises:
            ModelError: no plugin executes it, or it cannot be loaded.
            SandboxError, WorkerDied: no worker could be started for it.
        """
        if manifest.runtime not in self.node.plugins.runtimes():
            raise ModelError(f"model {manifest.name}: no plugin executes runtime {manifest.runtime!r}")
        if manifest.runtime in runtimes.available():
            self.pools[manifest.digest] = await self._pools.enter_async_context(self._pool(manifest, directory))
        self.models[manifest.digest] = (manifest, directory)
        self.node.endpoints["models"] = ", ".join(sorted(m.name for m, _ in self.models.values()))
        await self.renew()

    def _pool(self, manifest: ModelManifest, directory: Path) -> WorkerPool:
        return WorkerPool(
            manifest,
            directory,
            mode=self.settings.sandbox_mode,
            size=self.settings.workers,
            open_sandbox=self.node.plugins.open_sandbox,
            max_output_bytes=self.node.lifecycle.limits.output_bytes,
        )

    def _find_models(self) -> dict[bytes, tuple[ModelManifest, Path]]:
        """Return the verified models that some plugin can execute, by digest."""
        root = self.root
        if self.joined and self.settings.sync_models:
            root.mkdir(parents=True, exist_ok=True)  # it fills later
        elif self.settings.model_path is None and not any(root.glob("*/manifest.json")):
            log.info("%s holds no model yet; adding the bundled one", root)
            bundled.materialise("minilm", root)
        runtimes = self.node.plugins.runtimes()
        found = {}
        for digest, (manifest, directory) in find_models(root).items():
            if manifest.runtime not in runtimes:
                log.warning("model %s is left out: no plugin executes runtime %r", manifest.name, manifest.runtime)
                continue
            verify(directory, manifest)
            if not manifest.tolerance and any(spec.dtype in _FLOATS for spec in manifest.outputs):
                log.warning(
                    "model %s answers with floats, and its manifest has no tolerance: a validator with another CPU may "
                    "find right answers wrong",
                    manifest.name,
                )
            found[digest] = (manifest, directory)
        if not found and not (self.joined and self.settings.sync_models):
            raise ModelError(f"{root} holds no model that this node can serve; add one: ncn models add minilm")
        return found


async def _execute(pool: WorkerPool, request: InferenceRequest) -> AsyncGenerator[Chunk, None]:
    sequence = 0
    async for units, data in pool.execute(request.inputs, request.parameters):
        sequence += 1
        yield Chunk(sequence, units, data)


async def _settle_free() -> Settlement:
    return Settlement(FREE)
