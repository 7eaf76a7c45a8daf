"""What makes a value valid, and how a wrong one is told."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition`: for what a user can get wrong."""
    if not condition:
        raise ValueError(message)


def require_positive(options: object, *names: str) -> None:
    """Raise `ValueError` unless each of these fields is positive or None."""
    for name in names:
        value = getattr(options, name)
        require(value is None or value > 0, f"{name} is {value}; it must be positive")
