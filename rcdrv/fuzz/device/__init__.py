"""Fuzz the order of commands on an endpoint with a given layout, against a model.

A sequence is drawn step by step (:mod:`~rcdrv.fuzz.device.draw`) from steps that cannot harm the
endpoint in its current state (:mod:`~rcdrv.fuzz.device.harm`), executed through rcdrv's driver
(:mod:`~rcdrv.fuzz.device.session`), and compared with the protocol's outcome
(:mod:`~rcdrv.fuzz.device.model`). A finding is shortened and printed as a script
(:mod:`~rcdrv.fuzz.device.campaign`).

hypothesis.stateful is not used: a campaign must run with Python alone, on the host of a board, and
a sequence shrinks by dropping steps, which needs only a loop.
"""
