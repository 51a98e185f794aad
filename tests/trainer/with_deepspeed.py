"""Preloaded by the server that lives are forked from: deepspeed is imported once for all of them."""

from __future__ import annotations

from trainer import zero_engine

zero_engine.load()
