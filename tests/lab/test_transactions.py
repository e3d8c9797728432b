"""The accesses of the kernel's own driver, counted by the endpoint."""

from __future__ import annotations

from tests.unavailable import unavailable
from tools.lab.errors import LabError
from tools.transactions import documented, of_kernel


def test_kernel_accesses_are_those_of_the_documentation() -> None:
    told = {name: kernel for name, (_, kernel) in documented().items() if kernel is not None}
    try:
        counts = of_kernel()
    except LabError as error:
        unavailable(f"the lab does not start: {error}")
    assert told == counts
