"""Dataclasses to plain data and back, strictly: an unknown or missing key, or a wrong type, is an error that names it."""

from __future__ import annotations

from typing import Any, TypeVar

import cattrs
from cattrs.errors import BaseValidationError

from megatron_cpt.errors import ConfigError
from megatron_cpt.record.unknown import Figure, Interval, Range, Unavailable

T = TypeVar("T")
_converter = cattrs.Converter(forbid_extra_keys=True)


def _figure_to_plain(figure: Figure) -> Any:
    return {"unavailable": figure.reason} if isinstance(figure, Unavailable) else float(figure)


def _figure_from_plain(data: Any, _: object) -> Figure:
    if isinstance(data, dict) and set(data) == {"unavailable"}:
        return Unavailable(str(data["unavailable"]))
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise ValueError(f"expected a number or {{'unavailable': reason}}, got {data!r}")
    return float(data)


def _range_to_plain(found: Range) -> Any:
    if isinstance(found, Unavailable):
        return _figure_to_plain(found)
    return {"low": found.low, "likely": found.likely, "high": found.high}


def _range_from_plain(data: Any, _: object) -> Range:
    if isinstance(data, dict) and set(data) == {"low", "likely", "high"}:
        return _converter.structure(data, Interval)
    if isinstance(data, dict) and set(data) == {"unavailable"}:
        return Unavailable(str(data["unavailable"]))
    raise ValueError(f"expected low, likely and high, or {{'unavailable': reason}}, got {data!r}")


def _number(kind: type) -> Any:
    def hook(data: Any, _: object) -> Any:
        if isinstance(data, bool) or not isinstance(data, int | float) or (kind is int and data != int(data)):
            raise ValueError(f"expected {kind.__name__}, got {data!r}")
        return kind(data)

    return hook


def _text(data: Any, _: object) -> str:
    if not isinstance(data, str):
        raise ValueError(f"expected text, got {data!r}")
    return data


def _flag(data: Any, _: object) -> bool:
    if not isinstance(data, bool):
        raise ValueError(f"expected true or false, got {data!r}")
    return data


_converter.register_structure_hook(Figure, _figure_from_plain)
_converter.register_unstructure_hook(Figure, _figure_to_plain)
_converter.register_structure_hook(Range, _range_from_plain)
_converter.register_unstructure_hook(Range, _range_to_plain)
_converter.register_unstructure_hook(Unavailable, _figure_to_plain)
_converter.register_structure_hook(int, _number(int))
_converter.register_structure_hook(float, _number(float))
_converter.register_structure_hook(str, _text)
_converter.register_structure_hook(bool, _flag)


def to_plain(value: Any) -> Any:
    """Return dicts, lists, text and numbers for a dataclass tree; tuples become lists."""
    return _converter.unstructure(value)


def from_plain(kind: type[T], data: Any, *, where: object) -> T:
    """Return the dataclass `kind` for plain data.

    Raises:
        ConfigError: naming every key that is missing, unknown or of the wrong type.
    """
    try:
        return _converter.structure(data, kind)
    except BaseValidationError as error:
        raise ConfigError(
            "A record does not have the expected form.", where=where, value="; ".join(cattrs.transform_error(error))
        ) from None
