"""Where settings come from, read once, without knowing what they mean (and without importing pydantic)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError

__all__ = ["PREFIX", "Sources", "split_names", "variable_of"]

PREFIX = "NCN_"


class Sources:
    """Flags over environment over ``.env`` over ``ncn.toml`` over the presets of a command.

    Args:
        flags: ``{(table, field): value}``.
        environment: by default the process's.
        folder: where ``.env`` and ``ncn.toml`` are looked for; NCN_CONFIG names another file.
        presets: ``{(table, field): value}``, what the command takes in place of a default.

    Raises:
        ConfigError: a file named by NCN_CONFIG is missing, or a file cannot be parsed.
    """

    def __init__(
        self,
        flags: Mapping[tuple[str, str], Any] | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        presets: Mapping[tuple[str, str], Any] | None = None,
    ) -> None:
        folder = folder or Path.cwd()
        self.flags, self.presets = dict(flags or {}), dict(presets or {})
        self.environment = dict(os.environ if environment is None else environment)
        self.dotenv = _read_dotenv(folder / ".env")
        named = self.environment.get("NCN_CONFIG")
        self.toml_path = Path(named) if named else folder / "ncn.toml"
        try:
            self.toml: dict[str, Any] = tomllib.loads(self.toml_path.read_text())
        except FileNotFoundError as cause:
            if named:
                raise ConfigError(f"NCN_CONFIG names {named}, which does not exist") from cause
            self.toml = {}
        except OSError as cause:
            raise ConfigError(f"{self.toml_path} cannot be read: {cause.strerror}") from cause
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
            raise ConfigError(f"{self.toml_path} is not valid TOML: {cause}") from cause

    def find(self, table: str, field: str, variables: Iterable[str]) -> tuple[Any, str] | None:
        """Return the value of a field and where it came from, or None where no source sets it.

        Args:
            table: empty for the top level.
            field: of the table.
            variables: names in the environment, strongest first.
        """
        if (table, field) in self.flags:
            return self.flags[table, field], "flag"
        for source, values in (("environment", self.environment), (".env", self.dotenv)):
            for name in variables:
                if values.get(name, "") != "":
                    return values[name], f"{source} {name}"
        rows = self.toml.get(table, {}) if table else self.toml
        if not isinstance(rows, dict):
            raise ConfigError(f"{self.toml_path}: {table} is not a table; write [{table}]")
        if field in rows:
            return rows[field], str(self.toml_path)
        return (self.presets[table, field], "preset of ncn serve") if (table, field) in self.presets else None

    def names(self, field: str) -> list[str]:
        """Return a top-level list of names, such as ``plugins``; empty where no source sets it."""
        found = self.find("", field, (variable_of("", field),))
        names = split_names(found[0]) if found else []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"setting {field} from {found and found[1]} is not a list of names")
        return names


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    return {name: value for name, value in dotenv_values(path).items() if value is not None}


def variable_of(table: str, field: str) -> str:
    """Return the environment variable of a field: ``NCN_<TABLE>_<FIELD>``."""
    return PREFIX + "_".join(part for part in (table, field) if part).upper()


def split_names(value: Any) -> Any:
    """Return text as a list of the names between its commas; anything else as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
