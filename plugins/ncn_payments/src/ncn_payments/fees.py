"""What a unit of gas costs (EIP-1559)."""

from __future__ import annotations

from typing import NamedTuple

from ncn_framework.errors import ChainError

from .chain import Chain
from .chain.interface import quantity
from .errors import RpcError

__all__ = ["Price", "market_price"]

_DEFAULT_PRIORITY_FEE_WEI = 10**9


class Price(NamedTuple):
    """Of a unit of gas, in wei."""

    max_fee_wei: int
    priority_fee_wei: int

    def replacing(self, other: Price) -> Price:
        """Return this price, or more where pools would not take it in place of ``other``.

        geth asks for 10 % more of both, others for 12.5 %.
        """
        fee, priority = (max(now, before * 9 // 8 + 1) for now, before in zip(self, other, strict=True))
        return Price(fee, min(fee, priority))


async def market_price(chain: Chain, most_wei: int) -> Price:
    """Return what the chain takes now, with room for six full blocks.

    Args:
        chain: to ask.
        most_wei: what a unit of gas may cost.

    Raises:
        ChainError: it costs more, or the chain knows no such fees.
    """
    block = await chain.request("eth_getBlockByNumber", ["latest", False])
    if not isinstance(block, dict) or "baseFeePerGas" not in block:
        raise ChainError("the chain has no base fee (EIP-1559); the contracts need a chain with Cancun's rules")
    try:
        priority = quantity(await chain.request("eth_maxPriorityFeePerGas"))
    except RpcError:  # an old method that not every node has
        priority = _DEFAULT_PRIORITY_FEE_WEI
    base = quantity(block["baseFeePerGas"])
    if base + priority > most_wei:
        raise ChainError(
            f"a unit of gas costs {base + priority} wei, and payments.max_fee_gwei allows {most_wei} wei; "
            "wait, or raise it"
        )
    return Price(min(2 * base + priority, most_wei), priority)
