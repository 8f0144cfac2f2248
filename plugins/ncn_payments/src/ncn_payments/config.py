"""Settings of payments: table ``[payments]``."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from ncn_framework.config import Settings, known_as
from ncn_framework.errors import ConfigError

__all__ = ["ChainKind", "PaymentsSettings"]

ChainKind = Literal["embedded", "anvil", "rpc"]


class PaymentsSettings(Settings):
    """What an operator can set; the names in capitals are those of the reference network."""

    table = "payments"

    chain: ChainKind = Field(
        "embedded",
        description="Chain: embedded (in the gateway's process), anvil (started for you) or rpc (needs rpc_url).",
    )
    rpc_url: SecretStr = Field(
        SecretStr(""),  # a secret, because providers put a customer's key into the path
        description="JSON-RPC URL of the chain; several, separated by commas, take over from each other.",
        json_schema_extra=known_as("RPC_URL"),  # type: ignore[arg-type]
    )
    embedded_url: str = Field(
        "http://127.0.0.1:8080/chain", description="Where a gateway on this machine serves its embedded chain."
    )
    anvil_port: int = Field(8545, ge=0, lt=65536, description="Loopback port of anvil; 0 lets the system choose.")
    addresses: Path | None = Field(
        None, description="File of the contracts' addresses; by default home/deployments/<chain id>.json."
    )
    rpc_timeout_ms: int = Field(10_000, gt=0, description="Time for one answer of the chain.")
    rpc_patience_ms: int = Field(30_000, gt=0, description="How long to go on asking a chain that does not answer.")
    confirmations: int = Field(
        1, ge=1, le=1_000, description="Blocks, its own included, that make a transaction final."
    )
    replace_after_ms: int = Field(
        60_000, gt=0, description="Time without inclusion until a transaction's fee is raised."
    )
    max_fee_gwei: int = Field(500, gt=0, description="Most that a unit of gas may cost, in gwei.")

    batch_count: int = Field(1_000, gt=0, le=100_000, description="Charges that make a batch due.")
    batch_value_wei: int = Field(100 * 10**18, gt=0, lt=2**96, description="Sum of charges that makes a batch due.")
    batch_age_ms: int = Field(600_000, gt=0, description="Age of the oldest charge that makes a batch due.")
    batch_poll_ms: int = Field(
        5_000, gt=0, description="How often to look at the chain for news, and whether a batch is due by age."
    )
    batch_max_count: int = Field(10_000, gt=0, le=100_000, description="Most charges of one batch.")
    channel_min_wei: int = Field(
        10**15, ge=0, lt=2**96, description="A channel that owes less waits: its place in a batch costs 11,000 gas."
    )
    channel_age_ms: int = Field(86_400_000, gt=0, description="Age at which such a channel is settled all the same.")
    channel_refresh_ms: int = Field(60_000, gt=0, description="How long a channel's deposit counts as known.")
    escrow_grace_ms: int = Field(
        300_000, gt=0, description="Time behind a request's deadline until its escrow may be taken back by anybody."
    )
    own_deposit_wei: int = Field(
        10 * 10**18,
        ge=0,
        lt=2**96,
        description="What a gateway keeps in its own channel, for one-off payments; 0: none.",
    )
    subnet_fee_wei: int = Field(
        100 * 10**18, ge=0, lt=2**96, description="What a new subnet must have paid to the treasury, for validators."
    )
    validator_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys of the validators that this process speaks for, separated by commas.",
        json_schema_extra=known_as(flag="--validator-key"),  # type: ignore[arg-type]
    )

    wallet_password: SecretStr = Field(
        SecretStr(""),
        description="Password of wallets, where nobody can be asked.",
        json_schema_extra=known_as("NCN_WALLET_PASSWORD"),  # type: ignore[arg-type]
    )

    @property
    def chain_kind(self) -> ChainKind:
        """The chain to use: ``rpc`` wherever a URL is set."""
        return "rpc" if self.rpc_urls else self.chain

    @cached_property
    def rpc_urls(self) -> tuple[str, ...]:
        """The URLs of ``rpc_url``, in order.

        Raises:
            ConfigError: one of them is no HTTP URL. The message does not repeat it: it may hold a key.
        """
        urls = tuple(part.strip() for part in self.rpc_url.get_secret_value().split(",") if part.strip())
        for position, url in enumerate(urls, 1):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigError(f"payments.rpc_url: URL {position} of {len(urls)} is not http://... or https://...")
        return urls

    def addresses_path(self, home: Path, chain_id: int) -> Path:
        """Return the file of the contracts' addresses."""
        return (self.addresses or home / "deployments" / f"{chain_id}.json").expanduser().absolute()
