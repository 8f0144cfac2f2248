"""Where the contracts are, how they get there, and whether they are what they should be.

Addresses follow from code and parameters (CREATE2, EIP-1014, through the deterministic deployment proxy that Foundry
uses as well), as in ``contracts/script/Deploy.s.sol``: either finds what the other did, and a second run does nothing.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ncn_framework.errors import ChainError, ConfigError
from ncn_framework.signing import address_from_hex, address_hex

from .abi import Interface, interface
from .chain import Chain
from .contracts import CONTRACTS, Contracts
from .devkeys import CHAIN_ID, accounts
from .errors import RpcError
from .factory import FACTORY, created_at, creation_through
from .transactions import Call
from .writer import TransactionWriter

__all__ = ["ADMIN_ROLE", "Addresses", "Parameters", "addresses_of", "deploy", "has_code_of"]

ADMIN_ROLE = bytes(32)
_DAY_S = 86_400
_NCN = 10**18


@dataclass(frozen=True)
class Addresses:
    """Where the contracts of a network are.

    Attributes:
        chain_id: EIP-155 chain id.
        token, registry, payment, disputes, timelock: addresses, 20 bytes.
        block: in which the payment contract was made, from which events are to be read.
    """

    chain_id: int
    token: bytes
    registry: bytes
    payment: bytes
    disputes: bytes
    timelock: bytes
    block: int

    @classmethod
    def load(cls, path: Path, chain_id: int) -> Addresses:
        """Return what a file says.

        Args:
            path: of the file, as ``save``, ``ncn chain deploy`` and ``Deploy.s.sol`` write it.
            chain_id: that it must be for.

        Raises:
            ConfigError: there is no such file, or it is not what it should be.
        """
        try:
            raw = json.loads(path.read_text())
        except FileNotFoundError as cause:
            raise ConfigError(
                f"{path} with the contracts' addresses does not exist; run `ncn chain deploy`, "
                "or set NCN_PAYMENTS_ADDRESSES"
            ) from cause
        except (OSError, ValueError, RecursionError) as cause:
            raise ConfigError(f"{path} cannot be read as JSON: {cause}") from cause
        try:
            values = {field.name: raw[field.name] for field in fields(cls)}
            for name in CONTRACTS:
                values[name] = address_from_hex(values[name])
            if not all(isinstance(values[name], int) and values[name] >= 0 for name in ("chain_id", "block")):
                raise ValueError("chain_id or block is not a number")
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise ConfigError(f"{path} is no file of contracts' addresses: {cause!r}") from cause
        if values["chain_id"] != chain_id:
            raise ConfigError(
                f"{path} is for chain id {values['chain_id']}, not {chain_id}; "
                "set NCN_PAYMENTS_ADDRESSES or NCN_CHAIN_ID"
            )
        return cls(**values)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with draft.open("w") as file:
                json.dump(self.as_json(), file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def as_json(self) -> dict[str, int | str]:
        """Return the content of the file; addresses with EIP-55's checksum."""
        return {
            field.name: address_hex(value) if isinstance(value := getattr(self, field.name), bytes) else value
            for field in fields(self)
        }


@dataclass(frozen=True)
class Parameters:
    """What is settled at deployment; docs/operating.md says what each is for. Times in seconds.

    Attributes:
        deployer: whose key sends; it keeps no role.
        holder: who gets the whole supply.
        supply, min_stake, min_bond: base units of the token, 10^-18 NCN.
        proposers: who may propose to, and execute for, the timelock.
        guardian: who may pause.
    """

    deployer: bytes
    holder: bytes
    proposers: tuple[bytes, ...]
    guardian: bytes
    supply: int = 1_000_000_000 * _NCN
    timelock_delay_s: int = 2 * _DAY_S
    min_stake: int = 10_000 * _NCN
    min_bond: int = 1_000 * _NCN
    epoch_length_s: int = _DAY_S
    snapshot_lifetime_s: int = 2 * _DAY_S
    dispute_window_s: int = 7 * _DAY_S
    unbonding_period_s: int = 14 * _DAY_S
    withdrawal_delay_s: int = 2 * _DAY_S
    withdrawal_window_s: int = 7 * _DAY_S
    max_request_time_s: int = _DAY_S
    threshold: int = 3

    @classmethod
    def development(cls, deployer: bytes | None = None) -> Parameters:
        """Return what a development network is deployed with: short times, and one owner of everything.

        Args:
            deployer: the owner; by default the well-known one.
        """
        owner = deployer or accounts()["deployer"]
        return cls(
            deployer=owner,
            holder=owner,
            proposers=(owner,),
            guardian=owner,
            timelock_delay_s=0,
            epoch_length_s=1,
            snapshot_lifetime_s=30 * _DAY_S,
            dispute_window_s=600,
            unbonding_period_s=30 * _DAY_S + 600 + 3_600,
            withdrawal_delay_s=60,
            withdrawal_window_s=7 * _DAY_S,
            max_request_time_s=3_600,
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], deployer: bytes, chain_id: int) -> Parameters:
        """Return the defaults, or what the environment says instead; the names are those of ``Deploy.s.sol``.

        Args:
            environment: variables.
            deployer: whose key sends.
            chain_id: of the chain; on 31337 the defaults are those of a development network.

        Raises:
            ConfigError: a value is bad, or nobody is named who may propose.
        """
        values: dict[str, Any] = {}
        for field, variable in _VARIABLES.items():
            text = environment.get(variable, "")
            if text:
                values[field] = _parsed(variable, text, many=field == "proposers", address=field in _WHO)
        if chain_id == CHAIN_ID:
            return replace(cls.development(deployer), **values)
        if not values.get("proposers"):
            raise ConfigError(
                f"nobody would own the contracts on chain id {chain_id}: set PROPOSERS to the addresses that may "
                "propose to the timelock, separated by commas"
            )
        return cls(**{"deployer": deployer, "holder": deployer, "guardian": values["proposers"][0], **values})

    def creations(self) -> dict[str, Call]:
        """Return what creates each contract, by field of ``Addresses``, in the order in which they need each other."""
        made = {
            "timelock": interface(CONTRACTS["timelock"]).creation(
                self.timelock_delay_s, list(self.proposers), list(self.proposers), bytes(20)
            ),
            "token": interface(CONTRACTS["token"]).creation(self.holder, self.supply),
        }
        timelock, token = created_at(made["timelock"]), created_at(made["token"])
        made["registry"] = interface(CONTRACTS["registry"]).creation(
            token,
            self.deployer,
            timelock,
            (
                self.min_stake,
                self.min_bond,
                self.epoch_length_s,
                self.snapshot_lifetime_s,
                self.dispute_window_s,
                self.unbonding_period_s,
                self.threshold,
            ),
        )
        made["payment"] = interface(CONTRACTS["payment"]).creation(
            token,
            created_at(made["registry"]),
            timelock,
            self.guardian,
            (self.withdrawal_delay_s, self.withdrawal_window_s, self.max_request_time_s),
        )
        made["disputes"] = interface(CONTRACTS["disputes"]).creation(created_at(made["payment"]))
        return made


_WHO = ("holder", "guardian", "proposers")
_VARIABLES = {
    "holder": "TOKEN_HOLDER",
    "supply": "TOKEN_SUPPLY",
    "timelock_delay_s": "TIMELOCK_DELAY",
    "proposers": "PROPOSERS",
    "guardian": "GUARDIAN",
    "min_stake": "MIN_STAKE",
    "min_bond": "MIN_BOND",
    "epoch_length_s": "EPOCH_LENGTH",
    "snapshot_lifetime_s": "SNAPSHOT_LIFETIME",
    "dispute_window_s": "DISPUTE_WINDOW",
    "unbonding_period_s": "UNBONDING_PERIOD",
    "withdrawal_delay_s": "WITHDRAWAL_DELAY",
    "withdrawal_window_s": "WITHDRAWAL_WINDOW",
    "max_request_time_s": "MAX_REQUEST_TIME",
    "threshold": "THRESHOLD",
}


def _parsed(variable: str, text: str, *, many: bool, address: bool) -> Any:
    try:
        if many:
            return tuple(address_from_hex(part.strip()) for part in text.split(",") if part.strip())
        return address_from_hex(text.strip()) if address else int(text)
    except ValueError as cause:
        raise ConfigError(f"{variable}: {cause}") from cause


def addresses_of(parameters: Parameters, chain_id: int, block: int = 0) -> Addresses:
    """Return where ``deploy`` puts the contracts.

    Args:
        parameters: what with.
        chain_id: of the chain.
        block: from which events are to be read.
    """
    places = {name: created_at(creation) for name, creation in parameters.creations().items()}
    return Addresses(chain_id=chain_id, block=block, **places)


async def deploy(
    chain: Chain, writer: TransactionWriter, parameters: Parameters, known: Addresses | None = None
) -> Addresses:
    """Deploy what is missing, connect the parts, and hand every role to the timelock.

    May be interrupted anywhere and run again: what is on the chain is found there, what is on its way in the
    writer's journal.

    Args:
        chain: where.
        writer: of the deployer's key.
        parameters: what with.
        known: what an earlier run returned, for the block of the first one.

    Raises:
        TransactionReverted: the parameters don't fit together, or the deployer has too little ether.
        ChainError: the chain lacks the factory, or cannot be reached.
    """
    if not await chain.code(FACTORY):
        raise ChainError(
            f"chain id {chain.chain_id} lacks the deterministic deployment proxy at {address_hex(FACTORY)}; "
            "deploy it first (github.com/Arachnid/deterministic-deployment-proxy)"
        )
    blocks: dict[str, int] = {}
    for name, creation in parameters.creations().items():
        place = created_at(creation)
        if await chain.code(place):
            continue
        sent = await writer.send(creation_through(creation), key=f"deploy:{place.hex()}")
        blocks[name] = sent.block
        if not await chain.code(place):
            raise ChainError(f"{creation.what}: its transaction succeeded, but {address_hex(place)} has no code")
    addresses = addresses_of(parameters, chain.chain_id)
    if known is not None and known.payment == addresses.payment:
        block = known.block
    else:
        block = blocks.get("payment") or await _first_block(chain, addresses.payment)
    addresses = replace(addresses, block=block)
    await _hand_over(Contracts(chain, addresses), writer, parameters.deployer)
    return addresses


async def _hand_over(contracts: Contracts, writer: TransactionWriter, deployer: bytes) -> None:
    """Make the dispute manager the slasher and the timelock the registry's only admin.

    The registry must know the dispute manager, which knows the payment contract, which knows the registry: so the
    deployer is the registry's admin for a moment.
    """
    registry, addresses = contracts.registry, contracts.addresses
    if not await registry.read("hasRole", ADMIN_ROLE, deployer):
        return
    role = await registry.read("DISPUTES_ROLE")
    steps = (
        registry.call("grantRole", role, addresses.disputes),
        registry.call("grantRole", ADMIN_ROLE, addresses.timelock),
        registry.call("renounceRole", ADMIN_ROLE, deployer),
    )
    for number, step in enumerate(steps):
        await writer.send(step, key=f"hand-over:{addresses.registry.hex()}:{number}")


async def _first_block(chain: Chain, address: bytes) -> int:
    """Return the block in which a contract was made; 0 where the chain does not know its old states any more."""
    low, high = 0, await chain.block_number()
    try:
        while low < high:
            middle = (low + high) // 2
            code = await chain.request("eth_getCode", ["0x" + address.hex(), hex(middle)])
            low, high = (middle + 1, high) if code in (None, "0x") else (low, middle)
    except RpcError:
        return 0
    return low


def has_code_of(contract: Interface, code: bytes) -> bool:
    """Return whether the code at an address is that of an artifact.

    The code to be stored lies within the creation code, with zeros where the constructor writes immutable values: as
    operands of PUSH32, which are therefore not compared.

    Args:
        contract: the artifact.
        code: what the chain has.
    """
    creation, stored = contract.bytecode, _without_words(code)
    size = len(code).to_bytes((len(code).bit_length() + 7) // 8, "big")
    start = creation.find(code[:16]) if code else -1
    while start >= 0:
        same = _without_words(creation[start : start + len(code)]) == stored
        if same and bytes((0x5F + len(size),)) + size in creation[:start]:  # the constructor returns just that much
            return True
        start = creation.find(code[:16], start + 1)
    return False


def _without_words(code: bytes) -> bytes:
    """Return code with the operands of PUSH32 as zeros; PUSH1 to PUSH31 are stepped over (Yellow Paper, appendix H)."""
    plain, place = bytearray(code), 0
    while place < len(plain):
        size = plain[place] - 0x5F if 0x60 <= plain[place] <= 0x7F else 0
        if size == 32:
            plain[place + 1 : place + 33] = bytes(len(plain[place + 1 : place + 33]))
        place += 1 + size
    return bytes(plain)
