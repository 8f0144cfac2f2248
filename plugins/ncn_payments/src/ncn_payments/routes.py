"""What a gateway tells about payments over HTTP: the contracts, a channel, the batches, the embedded chain itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ncn_framework.digests import channel_id
from ncn_framework.errors import Draining, MalformedRequest, UnknownTask
from ncn_framework.inclusion import inclusion_json
from ncn_framework.signing import address_hex
from ncn_framework.wire.convert_batches import batch_to_pb
from ncn_framework.wire.json import encode
from ncn_framework.wire.json_payments import address_bytes, hash_bytes, voucher_json

from .chain_rpc import chain_route
from .desk import Desk
from .forms import ChannelJson, PaymentsJson, batch_json, settled_json
from .inclusions import inclusion_of
from .service import Payments

__all__ = ["payment_routes"]

_MOST_BATCHES = 50


def payment_routes(payments: Payments) -> Sequence[BaseRoute]:
    """Return the routes of a gateway; what is not there before it serves is looked up when it is asked for."""

    def desk() -> Desk:
        if payments.desk is None:
            raise Draining("payments are not open")
        return payments.desk

    async def about(_: Request) -> Response:
        chain, embedded = desk().chain, payments.settings.chain_kind == "embedded"
        return _json(
            PaymentsJson(
                chain_id=chain.domain.chain_id,
                token=address_hex(chain.addresses.token),
                token_name=chain.token_name,
                contract=address_hex(chain.addresses.payment),
                registry=address_hex(chain.addresses.registry),
                gateway=address_hex(desk().gateway),
                rpc="/chain" if embedded else None,
            )
        )

    async def channel(request: Request) -> Response:
        client = address_bytes(request.path_params["client"], "client")
        signer = address_bytes(request.path_params["signer"], "signer")
        found = desk().accounts.account(channel_id(client, signer, desk().gateway))
        await desk().accounts.ask(found, asyncio.get_running_loop().time())
        best = found.best
        return _json(
            ChannelJson(
                channel="0x" + found.channel.hex(),
                deposited_wei=str(found.deposit.deposited_wei),
                spent_wei=str(found.deposit.spent_wei),
                charged_wei=str(found.charged_wei),
                held_wei=str(found.held_wei),
                unlock_at_s=found.deposit.unlock_at_s,
                voucher=None if best is None else voucher_json(best),
            )
        )

    async def batches(_: Request) -> Response:
        rows = await asyncio.to_thread(desk().ledger.newest_batches, _MOST_BATCHES)
        return _json([batch_json(*row) for row in rows])

    async def settle(request: Request) -> Response:
        token = payments.operator_token
        if token is None or not token.fits(request.headers.get("authorization")):
            raise HTTPException(
                401,
                "only this gateway's operator may order it to settle: send the token in home/keys/operator.token",
                {"www-authenticate": "Bearer"},
            )
        done = await desk().settler.settle(everything=True)
        return _json([settled_json(settled) for settled in done])

    async def batch(request: Request) -> Response:
        text = request.path_params["nonce"]
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise MalformedRequest(f"{text[:32]!r} is not the nonce of a batch")
        statement = await asyncio.to_thread(desk().ledger.statement, desk().gateway, int(text))
        if statement is None:
            raise UnknownTask(f"this gateway has no batch with nonce {text}")
        data = batch_to_pb(statement).SerializeToString(deterministic=True)
        return Response(data, media_type="application/x-protobuf")

    async def inclusion(request: Request) -> Response:
        request_id = hash_bytes(request.path_params["id"], "id")
        return _json(inclusion_json(await inclusion_of(desk().ledger, desk().chain, request_id)))

    routes: list[BaseRoute] = [
        Route("/api/v1/payments", about),
        Route("/api/v1/channels/{client}/{signer}", channel),
        Route("/api/v1/batches", batches),
        Route("/api/v1/batches", settle, methods=["POST"]),
        Route("/api/v1/batches/{nonce}", batch),
        Route("/api/v1/inference/{id}/inclusion", inclusion),
    ]
    if payments.settings.chain_kind == "embedded" and payments.chain is not None:
        routes.append(chain_route(payments.chain))
    return routes


def _json(form: object) -> Response:
    return Response(encode(form), media_type="application/json")
