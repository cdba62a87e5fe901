# SPDX-License-Identifier: GPL-2.0-only
"""TOML files that people write: read, checked against a shape, with file and line of each fault.

A shape is a plain dataclass that inherits from :class:`Shape`; pydantic checks it. What a shape cannot say is checked
by its reader, which reports a fault with :meth:`Document.fault`. Lines are looked up only if there is a fault.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, get_args, get_type_hints

from orchestrator.errors import UserError
from orchestrator.spelling import hint

if TYPE_CHECKING:
    from pydantic import TypeAdapter

#: A place in a file: keys of tables and, from 0, indices of lists.
Place = Sequence[str | int]
T = TypeVar("T")
S = TypeVar("S", bound="Shape")

_KINDS = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "dataclass_type": "a table",
    "dataclass_exact_type": "a table",
}
_MISSING = ("missing", "missing_argument")
_UNKNOWN = ("unexpected_keyword_argument",)
#: Which of several faults is reported: the lowest.
_RANKS = {**dict.fromkeys(_UNKNOWN, 0), **dict.fromkeys(_MISSING, 2)}


class Shape:
    """A table of a TOML file: unknown keys are refused, and no value is converted to another type.

    A field whose key is not a Python name ends with ``_``.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}


@dataclass(frozen=True)
class Document(Generic[S]):
    """A TOML file whose content has the expected shape."""

    path: Path
    text: str
    content: S

    def fault(self, place: Place, what: str) -> UserError:
        """The error for a fault at a place of the file.

        Args:
            what: a clause without a period, e.g. ``must be at least 1``.
        """
        return _fault(self.path, self.text, place, what)

    def checked(self, place: Place, make: Callable[[], T]) -> T:
        """The result of `make`; a UserError that it raises gets file and line of `place`."""
        try:
            return make()
        except UserError as error:
            raise self.fault(place, str(error).rstrip(".")) from error


def read_document(path: Path, shape: type[S], what: str, schema: int | None = None) -> Document[S]:
    """Read a TOML file.

    Args:
        what: what the file is, e.g. ``the series``, for the error message.
        schema: the value of the key ``schema`` that the shape is for; None for a file without this key.

    Raises:
        UserError: it cannot be read, is not valid TOML or does not have the shape; the message names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read {what} ({error}).") from error
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number with more digits than Python converts
        raise UserError(f"{path}: cannot read {what}: not valid TOML: {error}.") from error
    adapter: TypeAdapter[S] = _adapter(cast("Hashable", shape))
    from pydantic import ValidationError

    if schema is not None and content.get("schema", schema) != schema:  # first: another schema has other keys
        found = _shown(content["schema"])
        raise _fault(path, text, ["schema"], f"schema {found} is not supported; this version reads {schema}")
    try:
        as_json = json.dumps(content, default=str)
    except (
        ValueError,
        RecursionError,
    ) as error:  # a hexadecimal number with too many digits; tables too deep
        raise UserError(f"{path}: cannot read {what}: {error}.") from error
    try:
        # As JSON, a list is accepted where a tuple is declared, and a table where a dataclass is.
        return Document(path, text, adapter.validate_json(as_json))
    except ValidationError as error:
        place, sentence = _first_fault(shape, content, error.errors(include_url=False))
        raise _fault(path, text, place, sentence) from error


@lru_cache
def _adapter(shape: Hashable) -> TypeAdapter[Any]:
    # It takes a while to import, which commands that read no file should not wait for.
    from pydantic import TypeAdapter

    return TypeAdapter(cast("Any", shape))


def _first_fault(shape: type[Shape], content: object, faults: Sequence[Any]) -> tuple[Place, str]:
    """The place of the fault to report, and what is wrong there."""
    places = [_place_in(content, each["loc"], each["type"]) for each in faults]
    # A misspelled key is also a missing one; the misspelling says more.
    first = min(range(len(faults)), key=lambda n: _RANKS.get(faults[n]["type"], 1))
    # A value that fits none of several types has a fault for each: the one deepest in the file is meant.
    of_one = [n for n, place in enumerate(places) if place[: len(places[first])] == places[first]]
    first = max(of_one, key=lambda n: len(places[n]))
    fault, place = faults[first], places[first]
    if fault["type"] in _KINDS:
        kinds = [_KINDS.get(faults[n]["type"], "") for n in of_one if places[n] == place]
        return (
            place,
            f"must be {' or '.join(filter(None, dict.fromkeys(kinds)))}, not {_shown(fault['input'])}",
        )
    return place, _sentence(fault["type"], fault["msg"], fault["input"], _known_keys(shape, place), place)


def _place_in(content: object, location: Sequence[str | int], kind: str) -> list[str | int]:
    """The place of an error, without the names that pydantic adds for the alternatives of a type."""
    place: list[str | int] = []
    for position, each in enumerate(location):
        is_absent = position == len(location) - 1 and kind in _MISSING
        if isinstance(content, dict) and (each in content or is_absent):
            content = content.get(each)
        elif isinstance(content, list) and isinstance(each, int) and each < len(content):
            content = content[each]
        else:
            continue
        place.append(each)
    return place


def _sentence(kind: str, message: str, value: object, known: Sequence[str], place: Place) -> str:
    if kind in _MISSING:
        return "this key is missing"
    if kind in _UNKNOWN:
        return f"unknown key; {hint(str(place[-1]), known, 'known are')}".rstrip(".")
    if kind == "literal_error":
        return f"{_shown(value)}: choose {message.partition('Input should be ')[2].replace(chr(39), '')}"
    return f"{message.replace('Input should be', 'must be')}, not {_shown(value)}"


def _shown(value: object) -> str:
    """A value as it might stand in the file."""
    return repr(value) if isinstance(value, str) else json.dumps(value, default=str)


def _known_keys(shape: type[Shape], place: Place) -> list[str]:
    """The keys of the table that contains the last key of `place`."""
    kind: Any = shape
    for each in place[:-1]:
        if isinstance(each, str) and is_dataclass(kind):
            kind = get_type_hints(kind).get(each)
        else:  # an entry of a list, or of a table with keys of any name
            kind = (get_args(kind) or (None,))[0 if isinstance(each, int) else -1]
        kind = (
            next((every for every in get_args(kind) if is_dataclass(every)), kind)
            if _is_union(kind)
            else kind
        )
    return [each.name for each in fields(kind)] if is_dataclass(kind) else []


def _is_union(kind: object) -> bool:
    return type(kind).__name__ in ("UnionType", "_UnionGenericAlias")


def _fault(path: Path, text: str, place: Place, what: str) -> UserError:
    where = _named(place)
    end = "" if what.endswith("?") else "."
    return UserError(f"{path}:{line_of(text, place)}: {where}{': ' if where else ''}{what}{end}")


def _named(place: Place) -> str:
    """A place for display.

    >>> _named(["stage", 1, "title"]), _named(["parameters", "pages", "default"])
    ('stage 2: title', 'parameters.pages.default')
    """
    text = ""
    for each in place:
        if isinstance(each, int):
            text += f" {each + 1}:"
        else:
            text += f"{'' if not text else ' ' if text.endswith(':') else '.'}{each}"
    return text.rstrip(":")


def line_of(text: str, place: Place) -> int:
    """The line, from 1, of the value at a place in TOML text; of the table that lacks it if it is not there.

    >>> line_of('a = 1\\n\\n[[b]]\\nc = 2\\n', ["b", 0, "c"]), line_of('a = 1\\n\\n[[b]]\\nc = 2\\n', ["b", 0, "d"])
    (4, 3)
    """
    lines = text.splitlines(keepends=True)
    content = tomllib.loads(text)
    present = list(place)
    while present and not _is_at(content, present):
        present.pop()
    if not present:
        return 1
    # The value begins where the shortest text that is valid TOML and contains it has got longer.
    before = 0
    for number in range(1, len(lines) + 1):
        try:
            part = tomllib.loads("".join(lines[:number]))
        except ValueError:
            continue
        if _is_at(part, present):
            begin = before
            while begin + 1 < number and re.fullmatch(r"\s*(#.*)?\s*", lines[begin]):
                begin += 1
            return begin + 1
        before = number
    return 1


def _is_at(content: Any, place: Place) -> bool:
    for each in place:
        if isinstance(each, int):
            if not isinstance(content, list) or each >= len(content):
                return False
        elif not isinstance(content, Mapping) or each not in content:
            return False
        content = content[each]
    return True
