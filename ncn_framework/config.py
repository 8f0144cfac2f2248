"""Settings: flags over environment over ``.env`` over ``ncn.toml`` over presets and defaults, each with its origin.

Every plugin owns one table, a subclass of ``Settings``. A field ``http_port`` of table ``gateway`` is
``--gateway-http-port``, ``NCN_GATEWAY_HTTP_PORT`` and ``[gateway] http_port`` in ncn.toml. Names that operators
know from the reference network work as they are (``known_as``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from .errors import ConfigError
from .lifecycle import StageLimits
from .models import ANONYMOUS, Domain
from .signing import address_from_hex
from .sources import PREFIX, Sources, split_names, variable_of

__all__ = ["Config", "CoreSettings", "Names", "Settings", "Value", "known_as"]

_NOT_SETTINGS = frozenset({"NCN_CONFIG"})


Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]
"""A list of names; as text, separated by commas."""


class Settings(BaseModel):
    """A table of the configuration; subclass it, name the table, and return the class from ``ncn_settings``."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    table: ClassVar[str]


def known_as(variable: str = "", flag: str = "") -> dict[str, str]:
    """Return ``json_schema_extra`` that gives a field the reference network's variable or flag as well."""
    return {"variable": variable, "flag": flag}


class CoreSettings(Settings):
    """The kernel's own settings: top level of ncn.toml, ``NCN_<FIELD>``."""

    table = ""

    home: Path = Field(Path("~/.ncn"), description="Folder of keys, databases and models.")
    plugins: Names = Field((), description="Plugins to call first, in this order; the others follow by name.")
    disabled_plugins: Names = Field((), description="Plugins that are not even imported.")
    chain_id: int = Field(31337, ge=1, lt=2**64, description="EIP-155 chain id that signatures are bound to.")
    contract: str = Field(
        "0x" + ANONYMOUS.hex(), description="Address of InferencePayment that signatures are bound to."
    )
    route_timeout_ms: int = Field(StageLimits.route_ms, gt=0, description="Limit of choosing a node.")
    reserve_timeout_ms: int = Field(StageLimits.reserve_ms, gt=0, description="Limit of reserving.")
    execute_timeout_ms: int = Field(StageLimits.execute_ms, gt=0, description="Limit of executing.")
    sign_timeout_ms: int = Field(StageLimits.sign_ms, gt=0, description="Limit of signing.")
    settle_timeout_ms: int = Field(StageLimits.settle_ms, gt=0, description="Limit of settling.")
    pay_timeout_ms: int = Field(StageLimits.pay_ms, gt=0, description="Limit of a client's paying into escrow.")
    release_timeout_ms: int = Field(StageLimits.release_ms, gt=0, description="Limit of undoing reservations.")
    max_output_bytes: int = Field(StageLimits.output_bytes, gt=0, description="Most bytes of one answer.")
    drain_timeout_ms: int = Field(20_000, ge=0, description="How long running work may take after SIGTERM.")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level to log.")
    log_format: str = Field("text", pattern="^(text|json)$", description="How log lines look.")

    @cached_property
    def domain(self) -> Domain:
        """EIP-712 domain of this network."""
        try:
            return Domain(self.chain_id, address_from_hex(self.contract))
        except ValueError as cause:
            raise ConfigError(f"contract: {cause}") from cause

    @cached_property
    def stage_limits(self) -> StageLimits:
        """The kernel's limits."""
        return StageLimits(
            route_ms=self.route_timeout_ms,
            reserve_ms=self.reserve_timeout_ms,
            execute_ms=self.execute_timeout_ms,
            sign_ms=self.sign_timeout_ms,
            settle_ms=self.settle_timeout_ms,
            pay_ms=self.pay_timeout_ms,
            release_ms=self.release_timeout_ms,
            output_bytes=self.max_output_bytes,
        )


@dataclass(frozen=True)
class Value:
    """One setting as it is in force: table, field, value (secrets masked) and where it came from."""

    table: str
    field: str
    value: str
    origin: str


S = TypeVar("S", bound=Settings)


class Config:
    """All settings of this process, table by table.

    Args:
        sources: by default those of this process and its folder.
    """

    def __init__(self, sources: Sources | None = None) -> None:
        self.sources = sources or Sources()
        self._loaded: dict[type[Settings], Settings] = {}

    @property
    def core(self) -> CoreSettings:
        return self.load(CoreSettings)

    @property
    def home(self) -> Path:
        """The folder of keys, databases and models."""
        return self.core.home.expanduser().absolute()

    def load(self, settings: type[S]) -> S:
        """Return the table of ``settings``, validated.

        Raises:
            ConfigError: a value is bad; the message names the setting and where the value came from.
        """
        if settings not in self._loaded:
            raw = self._raw(settings)
            try:
                self._loaded[settings] = settings(**{field: value for field, (value, _) in raw.items()})
            except ValidationError as cause:
                first = cause.errors()[0]
                field = str(first["loc"][0]) if first["loc"] else "?"
                origin = raw[field][1] if field in raw else str(self.sources.toml_path)
                raise ConfigError(f"setting {_label(settings, field)} from {origin}: {first['msg']}") from cause
        return cast(S, self._loaded[settings])

    def _raw(self, settings: type[Settings]) -> dict[str, tuple[Any, str]]:
        """Return field to (value, origin) of every field that some source sets."""
        found = {f: self.sources.find(settings.table, f, _variables(settings, f)) for f in settings.model_fields}
        return {field: value for field, value in found.items() if value is not None}

    def check(self, tables: Iterable[type[Settings]]) -> None:
        """Refuse what no table owns: an unknown table or key in ncn.toml, an unknown NCN_ variable.

        Raises:
            ConfigError: naming the closest known name.
        """
        everything: list[type[Settings]] = [CoreSettings, *tables]
        if len({t.table for t in everything}) != len(everything):
            raise ConfigError(f"two plugins own one table: {', '.join(sorted(t.table for t in everything))}")
        variables = {name for t in everything for f in t.model_fields for name in _variables(t, f)} | _NOT_SETTINGS
        for source, values in ((".env", self.sources.dotenv), ("the environment", self.sources.environment)):
            for name in values:
                if name.startswith(PREFIX) and name not in variables:
                    raise ConfigError(f"{source} sets {name}, which no plugin knows{_closest(name, variables)}")
        by_table = {t.table: t for t in everything}
        for key, value in self.sources.toml.items():
            if key in CoreSettings.model_fields:
                continue
            if key not in by_table:
                known = by_table.keys() | CoreSettings.model_fields.keys()
                raise ConfigError(f"{self.sources.toml_path}: {key!r} is unknown{_closest(key, known)}")
            for field in value if isinstance(value, dict) else ():
                if field not in by_table[key].model_fields:
                    raise ConfigError(
                        f"{self.sources.toml_path}: [{key}] {field!r} is unknown"
                        f"{_closest(field, by_table[key].model_fields)}"
                    )

    def explain(self, tables: Iterable[type[Settings]]) -> list[Value]:
        """Return every setting of ``tables`` with where it came from; secrets are masked."""
        rows = []
        everything: list[type[Settings]] = [CoreSettings, *tables]
        for settings in everything:
            loaded, raw = self.load(settings), self._raw(settings)
            for field in settings.model_fields:
                value = getattr(loaded, field)
                shown = ",".join(value) if isinstance(value, tuple) else str(value)
                if isinstance(value, SecretStr):
                    shown = "********" if value.get_secret_value() else ""
                rows.append(Value(settings.table, field, shown, raw[field][1] if field in raw else "default"))
        return rows


def flag_of(settings: type[Settings], field: str) -> str:
    """Return the command-line flag of a field."""
    extra = settings.model_fields[field].json_schema_extra
    if isinstance(extra, dict) and extra.get("flag"):
        return str(extra["flag"])
    return "--" + "-".join(part for part in (settings.table, field) if part).replace("_", "-")


def _variables(settings: type[Settings], field: str) -> list[str]:
    """Return the variables of a field, strongest first."""
    extra = settings.model_fields[field].json_schema_extra
    known = [str(extra["variable"])] if isinstance(extra, dict) and extra.get("variable") else []
    return [variable_of(settings.table, field), *known]


def _label(settings: type[Settings], field: str) -> str:
    return f"{settings.table}.{field}" if settings.table else field


def _closest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else "; `ncn config show` lists the known ones"
