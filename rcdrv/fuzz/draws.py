"""Draws that depend on the seed alone.

Hypothesis mixes constants into its draws, some from the source of every imported module outside
``site-packages``. So a seed gives other examples in another process or an installed rcdrv, while a
campaign must give the same anywhere.
"""

from __future__ import annotations

from typing import Any

from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider

BACKEND = "rcdrv"
"""Name for :class:`hypothesis.settings`."""


class SeededProvider(HypothesisProvider):
    """Hypothesis's provider of draws, without constants."""

    def _maybe_draw_constant(self, *_what: Any, **_how: Any) -> None:
        return None


AVAILABLE_PROVIDERS[BACKEND] = f"{__name__}.{SeededProvider.__name__}"
