"""The two clients: the same exchanges, driven over httpx with and without an event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from ncn_framework.errors import ConfigError
from ncn_framework.models import Domain
from ncn_framework.payments import PaymentDue
from ncn_framework.proof import Proof
from ncn_framework.signing import Signer
from ncn_framework.wire.json import StatusJson

from .answers import Answer
from .catalogue import Model
from .channel import Standing
from .events import Move
from .exchange import Call, Exchange, Pay, Paying, Reply, collect, connection_error, paid
from .inputs import Inputs
from .network import Network
from .requests import Named, Options, Prepared, Task
from .session import Session
from .settled import included
from .vouchers import Spending

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
        signer: signs requests and vouchers; without one, requests are anonymous and can only be free.
        payer: address whose deposit pays, where ``signer`` is a session key of it; the signer's own by default.
        payment: mode of payment of requests that name none: ``voucher``, ``escrow`` or ``free``; by default the first
            of the gateway's modes that this client can do.
        max_fee_wei: most that a request may cost that says nothing else; it is refused here, before it is sent.
        pay: pays into escrow, on chain, and returns the transaction's hash (``exchange.Pay``).
        domain: EIP-712 domain of the network, to be sure which network answers; without one, the gateway's word.
        node: address (20 bytes) of the only node whose answers are taken.
        timeout_s: deadline of requests that name none.
        transport: another way to send, for proxies and tests.

    Every method raises:
        NcnError: the typed error that the gateway names.
        PaymentRequired: the request would cost more than it may, or the deposit is too small; it says what to do.
        CapacityError: no gateway there, or the connection broke.
        StageTimeout: the gateway stays silent.
        VerificationError: what came back is not proved; nothing of it is returned.
    """

    def __init__(
        self,
        gateway: str = GATEWAY,
        *,
        signer: Signer | None = None,
        payer: bytes | None = None,
        payment: str | None = None,
        max_fee_wei: int | None = None,
        pay: Pay | None = None,
        domain: Domain | None = None,
        node: bytes | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        spending = Spending(signer, payer, payment, max_fee_wei, pay)
        self._session = session = Session(gateway, spending, domain, node, timeout_s)
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
            options: parameters, limit_units, max_fee_wei, timeout_s, deadline_ms, nonce, payment, pay
                (``requests.Options``).
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
        """Ask without waiting; arguments as of ``infer``. In mode ``escrow``, the task awaits its payment then."""
        return self._run(self._session.submit(self.prepare(model, inputs, **options)))

    def get(self, task: Named) -> Answer | StatusJson:
        """Return the answer of a settled task, else its status. ``task`` may be an id; then the inputs that the
        answer belongs to are the gateway's word."""
        return self._run(self._session.get(task))

    def wait(self, task: Named) -> Answer:
        """Return the answer of a task once it has settled; raise its error where it failed."""
        return self._run(self._session.wait(task))

    def moves(self, task: Named) -> list[Move]:
        """Return the moves of a task, from state to state, once it rests."""
        return self._run(self._session.moves(task))

    def payment_due(self, task: Task) -> PaymentDue:
        """Return what is to be paid into escrow for a task, checked: terms, amount, contract, signatures."""
        return self._run(self._session.payment_due(task))

    def pay(self, task: Task) -> bytes:
        """Have what is due for a task paid, after the same check, by the function that was given for it (``pay``).

        Returns the transaction's hash, to be confirmed. Where paying fails, the task is cancelled.
        """
        return self._run(self._session.pay(task))

    def confirm(self, task: Task, transaction: bytes) -> StatusJson:
        """Tell the gateway in which transaction (its hash, 32 bytes) a task was paid."""
        return self._run(self._session.confirm(task, transaction))

    def cancel(self, task: Named) -> StatusJson:
        """Ask the gateway to cancel a task."""
        return self._run(self._session.cancel(task))

    def proof(self, task: Named) -> Proof:
        """Return the proof of a settled task."""
        return self._run(self._session.proof(task))

    def settled(self, proof: Proof) -> Proof:
        """Return a proof with the batch in which its answer was settled, and the signatures of the validators."""
        return self._run(included(proof))

    def models(self) -> tuple[Model, ...]:
        """Return the models that are served now."""
        return self._run(self._session.models())

    def model(self, wanted: str | bytes) -> Model:
        """Return one model by name or digest."""
        return self._run(self._session.model(wanted))

    def network(self) -> Network:
        """Return chain, contract, the gateway's address and its payment modes, as the gateway said them at first."""
        return self._run(self._session.network())

    def standing(self) -> Standing:
        """Return how this client's channel with the gateway stands: what is deposited, charged and held."""
        return self._run(self._session.standing())

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
            step = next(exchange)
            while True:
                try:
                    reply = self._send(step) if isinstance(step, Call) else self._pay(step)
                except BaseException as error:  # interrupted or not, the exchange has to know what became of its call
                    step = exchange.throw(error)
                else:
                    step = exchange.send(reply)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _pay(self, step: Paying) -> Reply:
        transaction = step.pay(step.due)
        if inspect.isawaitable(transaction):
            if inspect.iscoroutine(transaction):
                transaction.close()
            raise ConfigError("pay is asynchronous; give this client a function, or use AsyncClient")
        return paid(transaction)

    def _send(self, call: Call) -> Reply:
        body = bytearray()
        try:
            with self._http.stream(
                call.method, call.path, content=call.content, headers=_headers(call), timeout=_timeout(call)
            ) as response:
                take = _taking(call, response, body)
                for part in response.iter_bytes():
                    take(part)
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
        payer: bytes | None = None,
        payment: str | None = None,
        max_fee_wei: int | None = None,
        pay: Pay | None = None,
        domain: Domain | None = None,
        node: bytes | None = None,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        spending = Spending(signer, payer, payment, max_fee_wei, pay)
        self._session = session = Session(gateway, spending, domain, node, timeout_s)
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

    async def wait(self, task: Named) -> Answer:
        """As ``Client.wait``."""
        return await self._run(self._session.wait(task))

    async def moves(self, task: Named) -> list[Move]:
        """As ``Client.moves``."""
        return await self._run(self._session.moves(task))

    async def payment_due(self, task: Task) -> PaymentDue:
        """As ``Client.payment_due``."""
        return await self._run(self._session.payment_due(task))

    async def pay(self, task: Task) -> bytes:
        """As ``Client.pay``."""
        return await self._run(self._session.pay(task))

    async def confirm(self, task: Task, transaction: bytes) -> StatusJson:
        """As ``Client.confirm``."""
        return await self._run(self._session.confirm(task, transaction))

    async def cancel(self, task: Named) -> StatusJson:
        """As ``Client.cancel``."""
        return await self._run(self._session.cancel(task))

    async def proof(self, task: Named) -> Proof:
        """As ``Client.proof``."""
        return await self._run(self._session.proof(task))

    async def settled(self, proof: Proof) -> Proof:
        """As ``Client.settled``."""
        return await self._run(included(proof))

    async def models(self) -> tuple[Model, ...]:
        """As ``Client.models``."""
        return await self._run(self._session.models())

    async def model(self, wanted: str | bytes) -> Model:
        """As ``Client.model``."""
        return await self._run(self._session.model(wanted))

    async def network(self) -> Network:
        """As ``Client.network``."""
        return await self._run(self._session.network())

    async def standing(self) -> Standing:
        """As ``Client.standing``."""
        return await self._run(self._session.standing())

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
            step = next(exchange)
            while True:
                try:
                    reply = await (self._send(step) if isinstance(step, Call) else self._pay(step))
                except BaseException as error:  # cancelled or not, the exchange has to know what became of its call
                    step = exchange.throw(error)
                else:
                    step = exchange.send(reply)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _pay(self, step: Paying) -> Reply:
        if inspect.iscoroutinefunction(step.pay):
            return paid(await step.pay(step.due))
        transaction = await asyncio.to_thread(step.pay, step.due)
        return paid(await transaction if inspect.isawaitable(transaction) else transaction)

    async def _send(self, call: Call) -> Reply:
        body = bytearray()
        try:
            async with self._http.stream(
                call.method, call.path, content=call.content, headers=_headers(call), timeout=_timeout(call)
            ) as response:
                take = _taking(call, response, body)
                async for part in response.aiter_bytes():
                    take(part)
        except httpx.HTTPError as cause:
            raise connection_error(self._session.gateway, call, cause) from cause
        return Reply(response.status_code, bytes(body))


def _headers(call: Call) -> dict[str, str] | None:
    return None if call.feed is None else {"accept": "text/event-stream, application/problem+json"}


def _taking(call: Call, response: httpx.Response, body: bytearray) -> Callable[[bytes], object]:
    """Return what takes the parts of a response: a stream's reader, else ``body``."""
    if call.feed is not None and response.is_success:
        return call.feed
    return partial(collect, body)


def _timeout(call: Call) -> httpx.Timeout:
    return httpx.Timeout(call.timeout_s, connect=_CONNECT_S)


def _tls(session: Session) -> bool:
    """Return whether to load the certificate authorities, which takes 0.1 s; redirects are not followed."""
    return session.gateway.startswith("https://")
