"""The models that a gateway offers, each with a manifest that was hashed here."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ncn_framework.errors import ModelError, RequestError, UnknownModel, VerificationError
from ncn_framework.manifests import manifest_from_json
from ncn_framework.models import ModelManifest
from ncn_framework.wire.json import ModelJson, encode

__all__ = ["Catalogue", "CatalogueJson", "Model"]


class CatalogueJson(msgspec.Struct):
    """What ``GET /api/v1/models`` gives."""

    models: list[ModelJson]


@dataclass(frozen=True)
class Model:
    """A model that some node serves now.

    Attributes:
        digest: SHA-256 of the manifest.
        name: such as ``minilm``; which digest has it is the gateway's word.
        nodes: how many nodes serve it.
        manifest: what it takes, gives and costs.
    """

    digest: bytes
    name: str
    nodes: int
    manifest: ModelManifest


class Catalogue:
    """Models by name and by digest.

    Args:
        form: as the gateway gave it.

    Raises:
        VerificationError: a manifest is malformed, or not the one its digest names.
    """

    def __init__(self, form: CatalogueJson) -> None:
        self.models = tuple(_model(f"models[{index}]", row) for index, row in enumerate(form.models))

    def find(self, wanted: str | bytes) -> Model:
        """Return a model by its name or digest (32 bytes, or 0x and 64 hex digits).

        Raises:
            UnknownModel: there is none.
            RequestError: several models have this name.
        """
        if isinstance(wanted, bytes):
            wanted = "0x" + wanted.hex()
        if wanted.startswith("0x"):
            found = [model for model in self.models if "0x" + model.digest.hex() == wanted.lower()]
        else:
            found = [model for model in self.models if model.name == wanted]
        if len(found) > 1:
            digests = ", ".join("0x" + model.digest.hex() for model in found)
            raise RequestError(f"{len(found)} models are named {wanted!r}; ask for one by its digest: {digests}")
        if not found:
            names = ", ".join(sorted({model.name for model in self.models})) or "none"
            raise UnknownModel(f"no node serves model {wanted!r} now; served: {names}")
        return found[0]


def _model(where: str, form: ModelJson) -> Model:
    try:
        manifest = manifest_from_json(encode(form.manifest))
    except ModelError as cause:
        raise VerificationError(f"{where}.manifest", str(cause)) from cause
    if "0x" + manifest.digest.hex() != form.digest:
        raise VerificationError(
            f"{where}.digest", f"is {form.digest[:80]!r}, but the manifest's is 0x{manifest.digest.hex()}"
        )
    return Model(manifest.digest, manifest.name, form.nodes, manifest)
