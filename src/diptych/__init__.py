"""Diptych: two chips, one token stream."""

__version__ = "0.1.0"
