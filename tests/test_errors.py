"""One tree, one table: every class is drawn, listed, and has a code of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest

from ncn_framework import errors
from ncn_framework.errors import TABLE, ConfigError, NcnError, VerificationError, code_of, error_from_code


def tree(root: type[NcnError]) -> Iterator[type[NcnError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


CLASSES = list(tree(NcnError))


def drawn() -> dict[str, str]:
    """Return class to base, as drawn in the docstring."""
    bases: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│ ]*)(?:[├└]── )?(\w+)", line)
        if not found or not ("──" in line or found[2] == "NcnError"):
            continue
        depth = (len(found[1]) // 4 + 1) if "──" in line else 0
        above[depth:] = [found[2]]
        bases[found[2]] = above[depth - 1] if depth else "Exception"
    return bases


def test_every_class_is_in_the_table_the_exports_and_the_drawing() -> None:
    assert set(CLASSES) == set(TABLE)
    assert {cls.__name__ for cls in CLASSES} < set(errors.__all__)
    assert drawn() == {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}


def test_codes_are_unique_slugs() -> None:
    codes = [row.code for row in TABLE.values()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_row_means_something_in_every_protocol(cls: type[NcnError]) -> None:
    row = TABLE[cls]
    assert row.grpc in grpc.StatusCode.__members__
    assert 400 <= row.http < 600
    assert row.websocket == 4000 + row.http
    assert row.exit in (1, 2)
    assert not (row.retryable and row.http < 500), "the caller's fault is not cured by waiting"
    assert cls.__doc__


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_the_wire_by_its_code(cls: type[NcnError]) -> None:
    again = error_from_code(TABLE[cls].code, "there: it is wrong")
    assert type(again) is cls
    assert str(again) == "there: it is wrong"
    assert code_of(again) == TABLE[cls]


def test_an_unknown_code_is_internal() -> None:
    assert type(error_from_code("from-the-future", "x")) is NcnError


def test_what_is_outside_the_tree_is_internal() -> None:
    assert code_of(ValueError()) == code_of(KeyboardInterrupt()) == TABLE[NcnError]


def test_a_plugins_own_subclass_has_its_bases_row() -> None:
    assert code_of(type("Mine", (ConfigError,), {})("x")) == TABLE[ConfigError]


def test_a_verification_error_names_the_place() -> None:
    assert VerificationError("chunks[1].link", "does not fit").where == "chunks[1].link"
