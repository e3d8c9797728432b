"""Classes that are a list of typed fields, without the price of :mod:`dataclasses`.

A ring takes tenths of a millisecond, so a user waits for the start of rcdrv.
:mod:`dataclasses` compiles the source of several methods for each class and imports
:mod:`inspect`; together that was a third of the start. The methods here are closures over the
names of the fields. To a type checker it is the same thing (PEP 681).

Only what ``rcdrv ring`` imports uses this, and ``TYPE_CHECKING = False`` in place of :mod:`typing`;
tests/unit/test_record.py lists those modules. All others use dataclasses and typing.
"""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without the import: checkers know the name
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from typing_extensions import dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_how):
        return lambda decorator: decorator


class _Fresh:
    def __init__(self, factory: Callable[[], object]) -> None:
        self.factory = factory


def fresh(*, factory: Callable[[], T]) -> T:
    """Default of a field of which every instance gets a new one, such as a list."""
    return _Fresh(factory)  # type: ignore[return-value]  # a field's specifier: see PEP 681


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Give a class of annotated fields ``__init__``, ``__repr__``, ``__eq__`` and ``__hash__``.

    Instances cannot be changed. A field may have a default; it must be immutable then.
    """
    names = _add_methods(cls)

    def __hash__(self: Any) -> int:
        return hash(tuple(self.__dict__[name] for name in names))

    for name, method in (("hash", __hash__), ("setattr", _refuse), ("delattr", _refuse)):
        setattr(cls, f"__{name}__", method)
    return cls


@dataclass_transform(field_specifiers=(fresh,))
def mutable_record(cls: type[T]) -> type[T]:
    """Like :func:`record`, but its fields can be changed."""
    _add_methods(cls)
    setattr(cls, "__hash__", None)  # noqa: B010 - what is equal now may differ later
    return cls


def _add_methods(cls: Any) -> tuple[str, ...]:
    # Annotations are a class's own, and strings (PEP 563); a base's fields come first.
    own = (name for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar"))
    names = tuple(dict.fromkeys((*getattr(cls, "__match_args__", ()), *own)))
    given = {name: getattr(cls, name) for name in names if hasattr(cls, name)}
    made = {name: value.factory for name, value in given.items() if isinstance(value, _Fresh)}
    defaults = {name: value for name, value in given.items() if name not in made}
    known, count = frozenset(names), len(names)

    def __init__(self: Any, *values: object, **named: object) -> None:
        # Once or more a message of a socket: no loop in Python over the fields.
        fields = self.__dict__
        if len(values) == count and not named:
            fields.update(zip(names, values))  # noqa: B905 - as long as each other
            return
        if len(values) < count:
            fields.update(defaults)
            for name, factory in made.items():
                fields[name] = factory()
        fields.update(zip(names, values, strict=False))
        if named:
            wrong = named.keys() - known or named.keys() & names[: len(values)]
            if wrong:
                said = ", ".join(wrong)
                raise TypeError(f"{cls.__name__}() has no field {said}, or has it already")
            fields.update(named)
        if len(fields) < count:
            raise TypeError(f"{cls.__name__}() needs {', '.join(known - fields.keys())}")
        if len(values) > count:
            raise TypeError(f"{cls.__name__}() takes {count} values, not {len(values)}")

    def __repr__(self: Any) -> str:
        values = (f"{name}={getattr(self, name)!r}" for name in names)
        return f"{cls.__name__}({', '.join(values)})"

    def __eq__(self: Any, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    for method in (__init__, __repr__, __eq__):
        setattr(cls, method.__name__, method)
    setattr(cls, "__match_args__", names)  # noqa: B010 - typeshed has it final
    return names


def _refuse(self: object, name: str, *_value: object) -> None:
    raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")
