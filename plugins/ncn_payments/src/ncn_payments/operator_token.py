"""The operator's token: who can read the home folder of a gateway may order it to settle.

A gateway makes a new one each time it starts, in ``home/keys/operator.token``, readable by its owner alone.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from pathlib import Path

from ncn_framework.errors import ConfigError, StoreError

__all__ = ["OperatorToken"]

_MOST_BYTES = 1024
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")


class OperatorToken:
    """A secret of which ``repr`` shows nothing.

    Args:
        value: the token.
    """

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "OperatorToken()"

    @staticmethod
    def path(home: Path) -> Path:
        """Return where it is."""
        return home / "keys" / "operator.token"

    @classmethod
    def renew(cls, home: Path) -> OperatorToken:
        """Write a new token in place of the one before, whole or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        path, value = cls.path(home), secrets.token_urlsafe(32)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(value + "\n")
            draft.replace(path)
        except OSError as cause:
            raise StoreError(f"the operator's token {path} cannot be written: {cause.strerror}") from cause
        finally:
            draft.unlink(missing_ok=True)
        return cls(value)

    @classmethod
    def load(cls, home: Path) -> OperatorToken:
        """Return the token of the gateway that was started last with this home folder.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        path = cls.path(home)
        try:
            with path.open("rb") as file:
                value = file.read(_MOST_BYTES).decode("ascii").strip()
        except FileNotFoundError as cause:
            raise ConfigError(
                f"{path} does not exist; a gateway makes it when it starts: set NCN_HOME to the gateway's folder"
            ) from cause
        except (OSError, UnicodeDecodeError) as cause:
            raise ConfigError(f"the operator's token {path} cannot be read") from cause
        if not _TOKEN.fullmatch(value):
            raise ConfigError(f"the operator's token {path} is damaged; the gateway makes a new one when it starts")
        return cls(value)

    @property
    def header(self) -> str:
        """Value of the Authorization header (RFC 6750, section 2.1)."""
        return f"Bearer {self._value}"

    def fits(self, authorization: str | None) -> bool:
        """Return whether an Authorization header shows this token; takes as long for a wrong one as for the right."""
        scheme, _, value = (authorization or "").partition(" ")
        right = hmac.compare_digest(value.strip().encode(), self._value.encode())
        return right and scheme.lower() == "bearer" and bool(self._value)
