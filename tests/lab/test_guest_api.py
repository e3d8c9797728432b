"""The Python API on the stock kernel's VFIO."""

from __future__ import annotations

import json

from tests.lab.test_guest_ring import by_spec, log_length, log_of
from tools.lab.guest import Guest

PROGRAM = """
import json, sys
import rcdrv

with rcdrv.open(sys.argv[1]) as endpoint:
    result = endpoint.ring(10, bar=4).check()
    suite = endpoint.test("DOORBELL_TEST", "MSI_TEST").check()
    backend = endpoint.info()["backend"]
    lacking = endpoint.lacks("bar4")
try:
    with rcdrv.open(sys.argv[1]) as endpoint, endpoint.doorbell() as doorbell:
        doorbell.ring()
        raise ArithmeticError
except ArithmeticError:
    pass
cases = [case.message for case in suite.cases]
print(json.dumps([backend, len(result.latencies_ns), str(result.location), lacking, cases]))
"""

COMMAND, ENABLE_DOORBELL, DISABLE_DOORBELL = 0x04, 1 << 6, 1 << 7


def test_it_does_on_the_kernels_vfio_what_the_commands_do(guest_x86_64: Guest) -> None:
    endpoint = by_spec(guest_x86_64, "rk3588")
    start = log_length(endpoint)
    result = guest_x86_64.run(["python3", "-c", PROGRAM, endpoint.address], timeout=120)
    assert result.status == 0, result.stderr
    backend, rings, location, lacking, cases = json.loads(result.stdout)
    assert backend in ("group", "iommufd")
    assert (rings, location) == (10, "BAR4+0xa0 data 0x00000000")
    assert lacking.endswith("reserves BAR4")
    assert cases[0] == "32 vectors"
    commands = [
        line["value"]
        for line in log_of(endpoint, start)
        if line.get("op") == "write" and (line["region"], line["offset"]) == ("BAR0", COMMAND)
    ]
    doorbells = [one for one in commands if one in (ENABLE_DOORBELL, DISABLE_DOORBELL)]
    # Rung, tested, and left by an exception: disabled each time, by nobody but rcdrv.
    assert doorbells == [ENABLE_DOORBELL, DISABLE_DOORBELL] * 3
