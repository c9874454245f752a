"""Agents with a memory that learns: policies, wrappers and adapters over tttstream's memories, for gymnasium."""

from tttstream import __version__

__all__ = ["__version__"]
