"""Draw examples that depend on the seed alone.

Hypothesis mixes constants into its draws, some from the source of every imported module outside
``site-packages``. A seed would thus give different examples in another process or an installed
rcdrv, while a campaign must give the same ones anywhere.
"""

from __future__ import annotations

from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")
_BACKEND = "rcdrv"


class SeededProvider(HypothesisProvider):
    """Hypothesis's provider of draws, without constants."""

    def _maybe_draw_constant(self, *_what: Any, **_how: Any) -> None:
        return None


AVAILABLE_PROVIDERS[_BACKEND] = f"{__name__}.{SeededProvider.__name__}"


def draw(strategy: SearchStrategy[T], seed: int | str, examples: int) -> list[T]:
    """Return up to ``examples`` draws of a strategy."""
    drawn: list[T] = []

    @seeded(seed)
    @settings(
        max_examples=examples,
        backend=_BACKEND,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: T) -> None:
        drawn.append(example)

    collect()
    return drawn
