"""Benchmarks of an endpoint's doorbell, memory, transfers and interrupts, as distributions."""
