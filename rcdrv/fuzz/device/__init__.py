"""Fuzz the order of commands on an endpoint with a given layout, against a model.

A sequence is drawn step by step (:mod:`~rcdrv.fuzz.device.draw`) from what cannot harm the endpoint
as it is then (:mod:`~rcdrv.fuzz.device.harm`), done through rcdrv's driver
(:mod:`~rcdrv.fuzz.device.session`), and each step is held against what the protocol says must come
out (:mod:`~rcdrv.fuzz.device.model`). A finding is shortened, and printed as a script
(:mod:`~rcdrv.fuzz.device.campaign`).

hypothesis.stateful is not used: a campaign must run where only Python is, such as the host of a
board, and a sequence shrinks by leaving out steps, which needs no more than a loop.
"""
