"""What an operator does with a subnet, and a node with its membership: sign, have a quorum sign, publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ncn_framework import digests
from ncn_framework.config import Config
from ncn_framework.errors import (
    ConfigError,
    ModelError,
    NoHandlerError,
    ReplayConflict,
    SignatureRejected,
    UnknownModel,
    UnknownSubnet,
)
from ncn_framework.lifecycle import now_ms
from ncn_framework.manager import PluginSet, build_manager, find_plugins
from ncn_framework.manifests import manifest_from_json
from ncn_framework.models import Domain, ModelManifest, Record
from ncn_framework.node import Node
from ncn_framework.payments import FeeDue
from ncn_framework.signing import Signer, address_hex, check_signature
from ncn_framework.wire.convert_subnets import (
    EndorsedSubnet,
    ListedModel,
    Subnet,
    endorsed_record,
    membership_record,
    subnet_record,
)

from .asking_subnets import AskedSubnets
from .records import withdrawal
from .sealing import sealed

__all__ = ["Member", "Operator", "listed_model", "subnet_fee_wei"]

Say = Callable[[str], None]

_DAY_MS = 86_400_000
_MOST_MANIFEST_BYTES = 1 << 20


class _Signing:
    """Holds the key of a role, bound to the network of a registry.

    Args:
        role: whose key, that of its settings or of its file under home.
        config: of this process.
        asked: the registry.

    Raises:
        ConfigError: the key is none, or the settings name another network than the registry's.
    """

    def __init__(self, role: str, config: Config, asked: AskedSubnets) -> None:
        sources = config.sources
        found = find_plugins(sources.names("plugins"), sources.names("disabled_plugins"))
        self.config, self.asked = config, asked
        self.plugins: PluginSet = build_manager(found)
        self.signer: Signer = Node(role, config, found).signer
        self.domain = _domain(config, asked)

    def sign(self, record: Record) -> Record:
        """Return the record with its owner's signature."""
        return sealed(record, self.signer, self.domain)


def _domain(config: Config, asked: AskedSubnets) -> Domain:
    """Return the network of the registry, unless the settings name another one."""
    named, domain = config.core.domain, asked.network()
    if named not in (domain, Domain(domain.chain_id)):
        raise ConfigError(
            f"registry {asked.target} belongs to chain {domain.chain_id} with contract {address_hex(domain.contract)}; "
            f"the settings say {named.chain_id} with {address_hex(named.contract)}: set NCN_CHAIN_ID and NCN_CONTRACT"
        )
    return domain


class Operator(_Signing):
    """The owner of a subnet: a gateway's operator, with the gateway's key.

    Args:
        config: of this process.
        asked: the registry.
        say: told of each step.
    """

    def __init__(self, config: Config, asked: AskedSubnets, say: Say) -> None:
        super().__init__("gateway", config, asked)
        self._say = say

    def current(self) -> EndorsedSubnet:
        """Return the subnet of this key, after checking that this key signed it.

        Raises:
            UnknownSubnet: there is none.
            SignatureRejected: what the registry shows is another's.
        """
        endorsed, _ = self.asked.subnet(address_hex(self.signer.address))
        record = endorsed.record
        if record.owner != self.signer.address:
            raise SignatureRejected(f"the registry showed the subnet of {address_hex(record.owner)} for this key's")
        digest = digests.record_digest(self.domain, record)
        check_signature(digest, record.signature, record.owner, "the configuration that the registry shows")
        return endorsed

    def check_free(self, name: str) -> None:
        """Refuse to create a subnet where this key has one, or another has the name.

        Raises:
            ReplayConflict: that is so.
        """
        for text in (address_hex(self.signer.address), name):
            try:
                taken = self.asked.subnet(text)[0].subnet
            except UnknownSubnet:
                continue
            if taken.owner == self.signer.address:
                raise ReplayConflict(
                    f"key {address_hex(taken.owner)} has subnet {taken.name!r} already; "
                    "`ncn subnet update` changes it, another key may have another one"
                )
            raise ReplayConflict(f"{name!r} is the name of subnet {address_hex(taken.owner)}; choose another")

    async def pay(self, amount_wei: int) -> bytes:
        """Pay the fee of this key's subnet, once and no more than once; return the transaction's hash.

        Raises:
            PaymentRequired: there is not so much.
            ChainError: the chain does not answer.
        """
        purpose = f"subnet {address_hex(self.signer.address)}"
        return await self.plugins.pay(FeeDue(self.domain.chain_id, amount_wei, purpose), self.signer)

    def create(self, subnet: Subnet, days: int, fee_transaction: bytes) -> EndorsedSubnet:
        """Have a new subnet signed, and publish it."""
        draft = self._draft(subnet, 0, days)
        return self._publish(self.asked.endorse(draft, fee_transaction))

    def update(self, current: EndorsedSubnet, subnet: Subnet, days: int) -> EndorsedSubnet:
        """Have the next version signed, and publish it."""
        draft = self._draft(subnet, current.record.sequence, days)
        return self._publish(self.asked.endorse(draft, current.fee_transaction))

    def change_model(self, current: EndorsedSubnet, model: ListedModel, days: int, *, added: bool) -> EndorsedSubnet:
        """Have a version signed with one model more, or less, and publish it."""
        rest = tuple(one for one in current.subnet.models if one.digest != model.digest)
        subnet = replace(current.subnet, models=(*rest, model) if added else rest)
        draft = self._draft(subnet, current.record.sequence, days)
        return self._publish(self.asked.change_model(draft, model, current.fee_transaction, added=added))

    def delete(self, current: EndorsedSubnet) -> None:
        """Withdraw the subnet everywhere. The fee is not paid back."""
        published = endorsed_record(current.record, current.quorum, current.fee_transaction)
        self.asked.withdraw(self.sign(withdrawal(published, now_ms())))

    def _draft(self, subnet: Subnet, known: int, days: int) -> Record:
        now = now_ms()
        return self.sign(subnet_record(subnet, max(now, known + 1), now + days * _DAY_MS))

    def _publish(self, endorsed: EndorsedSubnet) -> EndorsedSubnet:
        quorum, version = endorsed.quorum, endorsed.record.sequence
        self._say(f"{len(quorum.signatures)} validators of epoch {quorum.epoch} signed version {version}")
        self.asked.publish(self.sign(endorsed_record(endorsed.record, quorum, endorsed.fee_transaction)))
        self._say(f"published at registry {self.asked.target}")
        return endorsed


class Member(_Signing):
    """A compute node's operator, with the node's key.

    Raises:
        ConfigError: the node joins by its setting, and would undo what is done here.
    """

    def __init__(self, config: Config, asked: AskedSubnets) -> None:
        super().__init__("compute", config, asked)
        if named := _setting(config, self.plugins, "compute", "subnets"):
            raise ConfigError(
                f"this node joins by its setting compute.subnets ({','.join(named)}); change that instead"  # type: ignore[arg-type]
            )

    def move(self, name: str, days: int, *, joined: bool) -> str:
        """Join a subnet, or leave it; return what the registry says.

        Raises:
            UnknownSubnet: there is no such one.
        """
        owner = self.asked.subnet(name)[0].subnet.owner
        known, before = self.asked.membership(self.signer.address)
        rest = tuple(one for one in before if one != owner)
        now = now_ms()
        subnets = (*rest, owner) if joined else rest
        record = membership_record(self.signer.address, subnets, max(now, known + 1), now + days * _DAY_MS)
        return self.asked.move(address_hex(owner), self.sign(record), joined=joined)


def subnet_fee_wei(config: Config, plugins: PluginSet) -> int:
    """Return what the network takes for a new subnet: the setting of the plugin that pays.

    Raises:
        NoHandlerError: no plugin has such a setting.
    """
    fee = _setting(config, plugins, "payments", "subnet_fee_wei")
    if not isinstance(fee, int):
        raise NoHandlerError("no plugin says what a subnet costs (payments.subnet_fee_wei); pip install ncn-payments")
    return fee


def _setting(config: Config, plugins: PluginSet, table: str, field: str) -> object:
    """Return a setting of another plugin's table; None where no plugin has it."""
    for settings in plugins.settings():
        if settings.table == table and field in settings.model_fields:
            value: object = getattr(config.load(settings), field)
            return value
    return None


def listed_model(asked: AskedSubnets, model: str, sources: tuple[str, ...]) -> ListedModel:
    """Return a model as a subnet lists it.

    Args:
        asked: the registry, which knows the manifests of models that nodes serve.
        model: a model's folder, or the digest of one that a node serves.
        sources: URLs of folders that hold it.

    Raises:
        ModelError: the folder's manifest is missing or malformed.
        UnknownModel: no node serves a model of this digest.
    """
    manifest = _manifest(asked, model)
    size = sum(file.size_bytes for file in manifest.files)
    return ListedModel(manifest.digest, manifest.name, manifest.runtime, size, sources)


def _manifest(asked: AskedSubnets, model: str) -> ModelManifest:
    digits = model.removeprefix("0x")
    if len(digits) == 64 and all(c in "0123456789abcdefABCDEF" for c in digits):
        found = asked.manifest(bytes.fromhex(digits))
        if found is None:
            raise UnknownModel(f"no node that is alive serves model 0x{digits}; name the model's folder instead")
        return found
    path = Path(model) / "manifest.json"
    try:
        with path.open("rb") as file:
            return manifest_from_json(file.read(_MOST_MANIFEST_BYTES))
    except OSError as cause:
        raise ModelError(f"{path} cannot be read: {cause.strerror}; name a model's folder, or a digest") from cause
