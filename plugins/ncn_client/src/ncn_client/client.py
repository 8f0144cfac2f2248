"""The two clients: the same exchanges, driven over httpx with and without an event loop."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from ncn_framework.errors import ConfigError
from ncn_framework.models import Domain
from ncn_framework.proof import Proof
from ncn_framework.signing import Signer
from ncn_framework.wire.json import StatusJson

from .answers import Answer
from .catalogue import Model
from .exchange import Call, Exchange, Reply, collect, connection_error
from .inputs import Inputs
from .session import Named, Options, Prepared, Session, Task

__all__ = ["GATEWAY", "AsyncClient", "Client"]

T = TypeVar("T")

GATEWAY = "http://127.0.0.1:8080"
"""Where ``ncn serve`` listens."""

_HEADERS = {"accept": "application/json, application/problem+json", "content-type": "application/json"}
_CONNECT_S = 5.0
_CONNECT_RETRIES = 2


class Client:
    """Asks a gateway and verifies what it answers. Use it as a context manager, or ``close`` it.

    One client keeps its connections open and may be shared by threads.

    Args:
        gateway: URL.
        signer: signs requests; without one they are anonymous, and can only be free.
        domain: EIP-712 domain of the network, to be sure which network answers; without one, the gateway's word.
        node: address (20 bytes) of the only node whose answers are taken.
        timeout_s: deadline of requests that name none.
        transport: another way to send, for proxies and tests.

    Every method raises:
        NcnError: the typed error that the gateway names.
        CapacityError: no gateway there, or the connection broke.
        StageTimeout: the gateway stays silent.
        VerificationError: what came back is not proved; nothing of it is returned.
    """

    def __init__(
        self,
        gateway: str = GATEWAY,
        *,
        signer: Signer | None = None,
        domain: Domain | None = None,
        node: bytes | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._session = session = Session(gateway, signer, domain, node, timeout_s)
        try:
            self._http = httpx.Client(
                base_url=session.gateway,
                headers=_HEADERS,
                transport=transport or httpx.HTTPTransport(verify=_tls(session), retries=_CONNECT_RETRIES),
            )
        except httpx.InvalidURL as cause:
            raise ConfigError(f"gateway {gateway!r} is not a URL: {cause}") from cause

    def infer(self, model: str | bytes, inputs: Inputs, **options: Unpack[Options]) -> Answer:
        """Ask and wait for the answer.

        Args:
            model: name or digest (32 bytes, or 0x-hex).
            inputs: name to value (``inputs.Inputs``).
            options: parameters, limit_units, timeout_s, deadline_ms, nonce, payment (``session.Options``).
        """
        return self._run(self._session.infer(model, inputs, options))

    def embed(self, texts: str | Sequence[str], model: str | bytes = "minilm", **options: Unpack[Options]) -> Answer:
        """Ask for the embedding of one or several texts; ``vectors`` of the answer has one row for each."""
        return self._run(self._session.embed(texts, model, options))

    def prepare(self, model: str | bytes, inputs: Inputs, **options: Unpack[Options]) -> Prepared:
        """Make the complete request without sending it; arguments as of ``infer``."""
        return self._run(self._session.prepare(model, inputs, options))

    def send(self, prepared: Prepared) -> Answer:
        """Send a prepared request; sent again, after a broken connection say, it gives the first answer."""
        return self._run(self._session.send(prepared))

    def submit(self, model: str | bytes, inputs: Inputs, **options: Unpack[Options]) -> Task:
        """Ask without waiting; arguments as of ``infer``."""
        return self._run(self._session.submit(self.prepare(model, inputs, **options)))

    def get(self, task: Named) -> Answer | StatusJson:
        """Return the answer of a settled task, else its status. ``task`` may be an id; then the inputs that the
        answer belongs to are the gateway's word."""
        return self._run(self._session.get(task))

    def cancel(self, task: Named) -> StatusJson:
        """Ask the gateway to cancel a task."""
        return self._run(self._session.cancel(task))

    def proof(self, task: Named) -> Proof:
        """Return the proof of a settled task."""
        return self._run(self._session.proof(task))

    def models(self) -> tuple[Model, ...]:
        """Return the models that are served now."""
        return self._run(self._session.models())

    def model(self, wanted: str | bytes) -> Model:
        """Return one model by name or digest."""
        return self._run(self._session.model(wanted))

    def health(self) -> dict[str, Any]:
        """Return what the gateway says of its health."""
        return self._run(self._session.health())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, exchange: Exchange[T]) -> T:
        try:
            call = next(exchange)
            while True:
                call = exchange.send(self._send(call))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _send(self, call: Call) -> Reply:
        body = bytearray()
        try:
            with self._http.stream(call.method, call.path, content=call.content, timeout=_timeout(call)) as response:
                for part in response.iter_bytes():
                    collect(body, part)
        except httpx.HTTPError as cause:
            raise connection_error(self._session.gateway, call, cause) from cause
        return Reply(response.status_code, bytes(body))


class AsyncClient:
    """``Client`` for an event loop: the same methods, awaited; the same arguments and errors."""

    def __init__(
        self,
        gateway: str = GATEWAY,
        *,
        signer: Signer | None = None,
        domain: Domain | None = None,
        node: bytes | None = None,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._session = session = Session(gateway, signer, domain, node, timeout_s)
        try:
            self._http = httpx.AsyncClient(
                base_url=session.gateway,
                headers=_HEADERS,
                transport=transport or httpx.AsyncHTTPTransport(verify=_tls(session), retries=_CONNECT_RETRIES),
            )
        except httpx.InvalidURL as cause:
            raise ConfigError(f"gateway {gateway!r} is not a URL: {cause}") from cause

    async def infer(self, model: str | bytes, inputs: Inputs, **options: Unpack[Options]) -> Answer:
        """As ``Client.infer``."""
        return await self._run(self._session.infer(model, inputs, options))

    async def embed(
        self, texts: str | Sequence[str], model: str | bytes = "minilm", **options: Unpack[Options]
    ) -> Answer:
        """As ``Client.embed``."""
        return await self._run(self._session.embed(texts, model, options))

    async def prepare(self, model: str | bytes, inputs: Inputs, **options: Unpack[Options]) -> Prepared:
        """As ``Client.prepare``."""
        return await self._run(self._session.prepare(model, inputs, options))

    async def send(self, prepared: Prepared) -> Answer:
        """As ``Client.send``."""
        return await self._run(self._session.send(prepared))

    async def submit(self, model: str | bytes, inputs: Inputs, **options: Unpack[Options]) -> Task:
        """As ``Client.submit``."""
        return await self._run(self._session.submit(await self.prepare(model, inputs, **options)))

    async def get(self, task: Named) -> Answer | StatusJson:
        """As ``Client.get``."""
        return await self._run(self._session.get(task))

    async def cancel(self, task: Named) -> StatusJson:
        """As ``Client.cancel``."""
        return await self._run(self._session.cancel(task))

    async def proof(self, task: Named) -> Proof:
        """As ``Client.proof``."""
        return await self._run(self._session.proof(task))

    async def models(self) -> tuple[Model, ...]:
        """As ``Client.models``."""
        return await self._run(self._session.models())

    async def model(self, wanted: str | bytes) -> Model:
        """As ``Client.model``."""
        return await self._run(self._session.model(wanted))

    async def health(self) -> dict[str, Any]:
        """As ``Client.health``."""
        return await self._run(self._session.health())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, exchange: Exchange[T]) -> T:
        try:
            call = next(exchange)
            while True:
                call = exchange.send(await self._send(call))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _send(self, call: Call) -> Reply:
        body = bytearray()
        try:
            async with self._http.stream(
                call.method, call.path, content=call.content, timeout=_timeout(call)
            ) as response:
                async for part in response.aiter_bytes():
                    collect(body, part)
        except httpx.HTTPError as cause:
            raise connection_error(self._session.gateway, call, cause) from cause
        return Reply(response.status_code, bytes(body))


def _timeout(call: Call) -> httpx.Timeout:
    return httpx.Timeout(call.timeout_s, connect=_CONNECT_S)


def _tls(session: Session) -> bool:
    """Return whether to load the certificate authorities, which takes 0.1 s; redirects are not followed."""
    return session.gateway.startswith("https://")
