"""A verified answer, and its tensors as Python values."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ncn_framework.errors import MalformedRequest, NcnError, VerificationError
from ncn_framework.models import Settlement, SignedReceipt
from ncn_framework.payments import Voucher
from ncn_framework.proof import Proof
from ncn_framework.tensors import DTYPE_SIZES, Tensor, split_bytes, unpack_tensors
from ncn_framework.wire.json import SettlementJson
from ncn_framework.wire.json_payments import wei_from_json
from ncn_framework.wire.json_tensors import CODES

__all__ = ["Answer", "settlement_of", "values_of"]

_FLOATS = ("FP16", "BF16", "FP32", "FP64")


@dataclass(frozen=True)
class Answer:
    """An answer whose hash chain, receipt, signatures and outputs were checked before it got here.

    Attributes:
        proof: the evidence; what everything else is read from.
        settlement: how the fee was settled: what was charged is the fee of the receipt, the reference the gateway's
            word; None where it was not said.
        voucher: what was sent with the request, where that was paid by one.
    """

    proof: Proof
    settlement: Settlement | None = None
    voucher: Voucher | None = None

    @property
    def request_id(self) -> bytes:
        return self.proof.request.request_id

    @property
    def receipt(self) -> SignedReceipt:
        return self.proof.receipt

    @cached_property
    def parts(self) -> tuple[dict[str, Tensor], ...]:
        """The output tensors of each chunk, by name; a model that streams gives several chunks."""
        return tuple({t.name: t for t in unpack_tensors(chunk.data)} for chunk in self.proof.chunks)

    @property
    def outputs(self) -> dict[str, Tensor]:
        """The output tensors by name.

        Raises:
            NcnError: the answer was streamed in several chunks; use ``parts`` or ``values``.
        """
        if len(self.parts) != 1:
            raise NcnError(f"the answer has {len(self.parts)} chunks; use parts or values(name)")
        return self.parts[0]

    def values(self, name: str) -> Any:
        """Return output ``name`` as nested lists of bool, int, float or bytes; a scalar for shape [].

        Chunks are joined along the first axis.

        Raises:
            NcnError: there is no such output.
        """
        if name not in self.parts[0]:
            raise NcnError(f"the answer has no output {name!r}; it has: {', '.join(self.parts[0])}")
        values = [values_of(part[name]) for part in self.parts]
        if len(values) == 1:
            return values[0]
        return [item for value in values for item in (value if isinstance(value, list) else [value])]

    @property
    def vectors(self) -> list[list[float]]:
        """The rows of the one output that is a matrix of floats, such as embeddings.

        Raises:
            NcnError: no output is, or several are; use ``values``.
        """
        outputs = self.parts[0].values()
        names = [t.name for t in outputs if t.dtype in _FLOATS and len(t.shape) == 2]
        if len(names) != 1:
            raise NcnError(
                f"{len(names)} outputs are matrices of floats, not one; use values(name) with one of: "
                + ", ".join(t.name for t in outputs)
            )
        return self.values(names[0])  # type: ignore[no-any-return]

    def save(self, path: str | Path) -> None:
        """Write the proof file, which ``ncn verify`` checks offline."""
        Path(path).write_bytes(self.proof.to_json())


def settlement_of(form: SettlementJson, proof: Proof) -> Settlement:
    """Return how the fee of a proved answer was settled.

    Raises:
        VerificationError: another amount was charged than the node's receipt says, or in another mode.
    """
    request, fee_wei = proof.request, proof.receipt.receipt.fee_wei
    if form.mode != request.payment:
        raise VerificationError("settlement.mode", f"is {form.mode[:32]!r}, not {request.payment!r}")
    try:
        charged_wei = wei_from_json(form.charged_wei, "settlement.charged_wei")
    except MalformedRequest as cause:
        raise VerificationError("settlement.charged_wei", "is not a number of wei") from cause
    if charged_wei != fee_wei:
        raise VerificationError("settlement.charged_wei", f"is {charged_wei}; the fee of the receipt is {fee_wei}")
    return Settlement(form.mode, charged_wei, form.reference)


def values_of(tensor: Tensor) -> Any:
    """Return a well-formed tensor as nested lists; one without elements as an empty list."""
    return _nested(_flat(tensor), tensor.shape)


def _flat(tensor: Tensor) -> list[Any]:
    if tensor.dtype == "BYTES":
        return split_bytes(tensor)
    if tensor.dtype == "BF16":  # the upper half of an FP32
        padded = b"".join(b"\0\0" + tensor.data[i : i + 2] for i in range(0, len(tensor.data), 2))
        return list(struct.unpack(f"<{len(tensor.data) // 2}f", padded))
    count = len(tensor.data) // DTYPE_SIZES[tensor.dtype]
    return list(struct.unpack(f"<{count}{CODES[tensor.dtype]}", tensor.data))


def _nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not flat:
        return []
    if len(shape) < 2:
        return flat if shape else flat[0]
    step = math.prod(shape[1:])
    return [_nested(flat[i : i + step], shape[1:]) for i in range(0, len(flat), step)]
