"""What makes a value valid, and how a wrong one is told."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition`: for what a user can get wrong."""
    if not condition:
        raise ValueError(message)
