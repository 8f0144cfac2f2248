"""The whole flow against a running network, step by step, each with what proves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

from ncn_framework.errors import NcnError, VerificationError
from ncn_framework.models import ANONYMOUS
from ncn_framework.payments import ESCROW, PaymentDue
from ncn_framework.proof import verify
from ncn_framework.signing import address_hex
from ncn_framework.tensors import DTYPE_SIZES, Tensor, TensorSpec

from .amounts import shown
from .answers import Answer
from .catalogue import Model
from .client import Client
from .requests import Task

__all__ = ["walk"]

_TEXT = b"The quick brown fox jumps over the lazy dog."


def walk(client: Client, wanted: str | None, say: Callable[[str], None]) -> None:
    """Ask one question, and say of each step what it was and what proves it.

    Args:
        client: of the network; with a key it pays as it was told to.
        wanted: name or digest of the model; None takes the first one, of texts if there is one.
        say: hears one line at a time.

    Raises:
        NcnError: what does not hold; by then ``say`` has heard of the step.
    """
    steps = _Steps(say)
    try:
        _walk(client, wanted, steps)
    except NcnError:
        say(f"FAILED in step {steps.number}, {steps.title}")
        raise
    say(f"all {steps.number} steps hold")


class _Steps:
    def __init__(self, say: Callable[[str], None]) -> None:
        self.number, self.title, self._say = 0, "", say

    def begin(self, title: str) -> None:
        self.number, self.title = self.number + 1, title
        self._say(f"{self.number}. {title}")

    def say(self, line: str) -> None:
        self._say(f"   {line}")


def _walk(client: Client, wanted: str | None, steps: _Steps) -> None:
    say = steps.say
    steps.begin("the gateway says who it is, and what it serves")
    network = client.network()
    say(f"chain {network.domain.chain_id}, contract {address_hex(network.domain.contract)}")
    say(f"gateway {address_hex(network.gateway)}; payment modes: {', '.join(network.modes)}")
    model = _model(client, wanted)
    manifest = model.manifest
    say(f"model {manifest.name}: its manifest hashes to 0x{model.digest.hex()}; {model.nodes} nodes serve it")
    say(f"price: {shown(manifest.base_fee_wei)}, and {shown(manifest.unit_fee_wei)} a unit")

    steps.begin("the client submits a request")
    task = client.submit(model.digest, {spec.name: _example(spec) for spec in manifest.inputs})
    prepared = task.prepared
    request = prepared.request
    say(f"id {task.id}, hash 0x{request.request_hash.hex()}")
    signed = "anonymous" if request.client == ANONYMOUS else f"signed by {address_hex(request.client)}"
    say(f"{signed}; payment {request.payment}; at most {request.limit_units} units, {shown(prepared.limit_wei)}")
    if task.voucher is not None:
        say(f"voucher of {address_hex(task.voucher.client)}: {shown(task.voucher.cumulative_wei)} in all")
    due = None
    if request.payment == ESCROW:
        try:
            due = _paid(client, task, steps)
        except NcnError:
            with suppress(NcnError):
                client.cancel(task)
            raise

    steps.begin("the request is routed, reserved, executed, checked and settled")
    moves = client.moves(task)
    for move in moves:
        detail = f"  {move.detail}" if move.detail else ""
        say(f"+{move.at_ms - moves[0].at_ms:5d} ms  {move.state}{detail}")

    steps.begin("the answer is verified")
    answer = client.wait(task)
    answer.proof.check(report=say)
    receipt = answer.receipt.receipt
    if due is not None and receipt.node != due.terms.node:
        raise VerificationError(
            "receipt.node", f"is {address_hex(receipt.node)}; {address_hex(due.terms.node)} was paid"
        )
    for name, tensor in answer.parts[0].items():
        say(f"output {name}: {tensor.dtype} {list(tensor.shape)}")

    steps.begin("what was charged is the fee that the node signed")
    _charged(client, answer, due, say)

    steps.begin("the same request again gives the same answer, and is not charged again")
    if client.send(prepared).proof != answer.proof:
        raise VerificationError("answer", "is another one the second time")
    say(f"receipt of {receipt.finished_ms} ms, output 0x{receipt.output_hash.hex()}, as before")

    steps.begin("the proof holds offline, and not with one byte changed")
    _offline(client.proof(task).to_json(), receipt.node, say)


def _model(client: Client, wanted: str | None) -> Model:
    if wanted is not None:
        return client.model(wanted)
    models = client.models()
    if not models:
        raise NcnError("the gateway serves no model; start a compute node: `ncn serve compute`")
    return next((m for m in models if all(spec.dtype == "BYTES" for spec in m.manifest.inputs)), models[0])


def _example(spec: TensorSpec) -> Tensor:
    """Return an input that fits: a sentence, or zeros; open dimensions have the size 1."""
    shape = tuple(1 if size < 0 else size for size in spec.shape)
    count = math.prod(shape)
    one = len(_TEXT).to_bytes(4, "little") + _TEXT if spec.dtype == "BYTES" else bytes(DTYPE_SIZES[spec.dtype])
    return Tensor(spec.name, spec.dtype, shape, one * count)


def _paid(client: Client, task: Task, steps: _Steps) -> PaymentDue:
    """Pay into escrow; return what was paid."""
    say = steps.say
    steps.begin("validators sign price and node, and the client checks what they signed")
    due = client.payment_due(task)
    terms, quorum = due.terms, due.quorum
    say(f"node {address_hex(terms.node)}, {len(quorum.signatures)} validators of epoch {quorum.epoch} signed")
    say(f"at most {shown(terms.amount_wei)}, refunded after {terms.expiry_s} s since the epoch")

    steps.begin("the client pays into escrow, on chain")
    transaction = client.pay(task)
    say(f"contract {address_hex(due.contract)}, escrow 0x{due.escrow_id.hex()}")
    say(f"transaction 0x{transaction.hex()}")

    steps.begin("the client confirms the payment")
    say(f"the gateway has the task in {client.confirm(task, transaction).state}")
    return due


def _charged(client: Client, answer: Answer, due: PaymentDue | None, say: Callable[[str], None]) -> None:
    settlement, receipt = answer.settlement, answer.receipt.receipt
    if settlement is None:
        raise VerificationError("settlement", "is missing")
    say(f"{receipt.units} units, {shown(settlement.charged_wei)} charged, payment {settlement.mode}")
    if due is not None:
        say(f"validators signed the result, and the contract paid out in transaction {settlement.reference}")
        say(f"{shown(due.terms.amount_wei - settlement.charged_wei)} go back to the client")
    if settlement.mode == "voucher":
        standing = client.standing()
        say(f"channel: {shown(standing.deposited_wei)} deposited, {shown(standing.charged_wei)} charged in all")
        say(f"its highest voucher, signed by this client: {shown(standing.voucher_wei)}")


def _offline(data: bytes, node: bytes, say: Callable[[str], None]) -> None:
    verify(data, node=node)
    say(f"{len(data)} bytes verified, as `ncn verify` does")
    middle = len(data) // 2
    try:
        verify(data[:middle] + bytes((data[middle] ^ 1,)) + data[middle + 1 :], node=node)
    except VerificationError as error:
        say(f"byte {middle} changed: refused at {error.where}")
    else:
        raise VerificationError(f"byte {middle}", "was changed, and the proof still holds")
