"""Tools for developing rcdrv; no part of what is installed."""
