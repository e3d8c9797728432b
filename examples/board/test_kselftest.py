"""The kernel's pci_endpoint kselftest: what fails is what this board is known not to do."""

import board
import pytest

import rcdrv

FIXTURES = dict.fromkeys(name.split(".")[0] for name in rcdrv.case_names())


@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_cases_of(endpoint: rcdrv.Endpoint, fixture: str) -> None:
    result = endpoint.test(fixture)
    failed = {str(case.name): case.message for case in result.failed}
    expected = [name for name in board.CANNOT if name.startswith(fixture)]
    assert sorted(failed) == sorted(expected), failed
