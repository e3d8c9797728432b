"""pytest --lg-env env.yaml"""

# mypy: ignore-errors
# labgrid's fixtures have no types.

import pytest


@pytest.fixture
def endpoint(target):
    """The driver, active."""
    driver = target.get_driver("RcdrvDriver")
    yield driver
    target.deactivate(driver)


def test_the_doorbell_rings(endpoint):
    assert len(endpoint.ring(3).latencies_ns) == 3


def test_the_cases_that_pass_on_this_board(endpoint):
    assert set(endpoint.test("BAR1", "MSI_TEST").values()) == {"pass"}
