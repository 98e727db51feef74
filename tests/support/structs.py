"""Values of our own msgspec shapes, for requests that no service model describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st
from msgspec import NODEFAULT, inspect

from support.modelled import DOCUMENTS, TEXT


def of_type(kind: Any, overrides: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """JSON values that ``kind`` decodes. ``overrides`` are by "Struct.field", what is drawn there instead."""
    return _of(inspect.type_info(kind), overrides)


def _of(kind: inspect.Type, overrides: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    made: dict[type, Callable[[Any], st.SearchStrategy[Any]]] = {
        inspect.StrType: lambda _: TEXT,
        inspect.IntType: lambda _: st.integers(-2, 30),
        inspect.FloatType: lambda _: st.floats(-0.5, 2, width=16),
        inspect.BoolType: lambda _: st.booleans(),
        inspect.NoneType: lambda _: st.none(),
        inspect.AnyType: lambda _: DOCUMENTS,
        inspect.LiteralType: lambda kind: st.sampled_from(kind.values),
        inspect.UnionType: lambda kind: st.one_of([_of(one, overrides) for one in kind.types]),
        inspect.ListType: lambda kind: st.lists(st.deferred(lambda: _of(kind.item_type, overrides)), max_size=3),
        inspect.DictType: lambda kind: st.dictionaries(TEXT, _of(kind.value_type, overrides), max_size=2),
        inspect.StructType: lambda kind: _struct(kind, overrides),
    }
    return made[type(kind)](kind)


def _struct(kind: inspect.StructType, overrides: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field in kind.fields:
        needed = field.default is NODEFAULT and field.default_factory is NODEFAULT
        name = f"{kind.cls.__name__}.{field.name}"
        values = overrides[name] if name in overrides else _of(field.type, overrides)
        (required if needed or name in overrides else optional)[field.encode_name] = values
    return st.fixed_dictionaries(required, optional=optional)
