"""Frozen value classes without the import of `dataclasses`, which would cost the guest program a third of its start."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")

    @dataclass_transform(frozen_default=True, kw_only_default=True)
    def record(cls: type[T]) -> type[T]:
        """Make `cls` a frozen, slotted, keyword-only value class, as `dataclass` would."""
        ...

else:

    def record(cls):
        """Make `cls` a frozen, slotted, keyword-only value class, as `dataclass` would."""
        names = tuple(cls.__annotations__)
        defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
        left_out = {*defaults, "__dict__", "__weakref__"}
        body = {name: value for name, value in cls.__dict__.items() if name not in left_out}
        body |= {"__slots__": names, "FIELDS": names, "DEFAULTS": defaults, "__match_args__": ()}
        body.setdefault("__repr__", __repr__)
        body |= {method.__name__: method for method in (__init__, __setattr__, __delattr__, __eq__, __hash__)}
        return type(cls)(cls.__name__, cls.__bases__, body)

    def __init__(self, **given):
        setter = object.__setattr__
        defaults = self.DEFAULTS
        for name in self.FIELDS:
            if name in given:
                setter(self, name, given.pop(name))
            elif name in defaults:
                setter(self, name, defaults[name])
            else:
                raise TypeError(f"{type(self).__name__}: {name} is missing")
        if given:
            raise TypeError(f"{type(self).__name__}: {sorted(given)} unknown")

    def __setattr__(self, name, value):
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name):
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other):
        return type(self) is type(other) and all(getattr(self, name) == getattr(other, name) for name in self.FIELDS)

    def __hash__(self):
        return hash((type(self), *(getattr(self, name) for name in self.FIELDS)))

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.FIELDS)})"


def fields(value: object) -> dict[str, Any]:
    """The fields of a record, by name; a shallow copy."""
    names: tuple[str, ...] = value.FIELDS  # type: ignore[attr-defined]
    return {name: getattr(value, name) for name in names}


def replaced(value: T, **changes: Any) -> T:
    """A copy of a record with some fields changed."""
    return type(value)(**(fields(value) | changes))
