"""Draws that depend on the seed alone.

Hypothesis mixes constants into what it draws, and takes some from the source of every module that
happens to be imported and is not in ``site-packages``. The same seed then gives other examples in
another process, and in an installed rcdrv. A campaign has to give the same anywhere.
"""

from __future__ import annotations

from typing import Any

from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider

BACKEND = "rcdrv"
"""For :class:`hypothesis.settings`."""


class SeededProvider(HypothesisProvider):
    """Hypothesis's own source of draws, without constants."""

    def _maybe_draw_constant(self, *_what: Any, **_how: Any) -> None:
        return None


AVAILABLE_PROVIDERS[BACKEND] = f"{__name__}.{SeededProvider.__name__}"
