"""Measures rcdrv as ratios, each against something in the same run: see docs/performance.md."""
