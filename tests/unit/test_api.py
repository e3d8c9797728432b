"""The Python API: what docs/api.md says of it is true, and an endpoint is always given back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import rcdrv
from rcdrv.api import Endpoint
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.sim.layout import load_layout
from rcdrv.verdict import NotPassed, Reason, Verdict

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/api.md"
LIBRARIES = [ROOT / "docs/vfio.md", ROOT / "docs/vfio-user.md"]


def blocks(page: Path = PAGE) -> list[str]:
    """The Python in a page, also where it is indented in a list."""
    found = re.findall(r"^ *```python\n(.*?)^ *```$", page.read_text("utf-8"), re.M | re.S)
    return [textwrap.dedent(code) for code in found]


Opener = Callable[..., tuple[Endpoint, Direct]]


@pytest.fixture
def direct() -> Iterator[Opener]:
    """Opens software endpoints in this process, on virtual time."""
    with ExitStack() as stack:

        def make(spec: str, **options: Any) -> tuple[Endpoint, Direct]:
            device = Direct(load_layout(spec))
            stack.callback(device.endpoint.close)
            function = Function(device.attach(), clock=device.clock)
            endpoint = Endpoint(function, **options)
            stack.callback(endpoint.close)
            return endpoint, device

        yield make


@pytest.mark.parametrize("code", blocks())
def test_the_examples_of_the_manual_run(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/api.md", "exec"), {"__name__": "example"})


def test_the_examples_of_the_manual_satisfy_a_strict_type_checker(tmp_path: Path) -> None:
    modules = []
    for number, code in enumerate(code for page in [PAGE, *LIBRARIES] for code in blocks(page)):
        modules.append(tmp_path / f"example{number}.py")
        modules[-1].write_text(code)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", *map(str, modules)],
        cwd=ROOT,  # where rcdrv is, and the cache of what is checked already
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


def test_every_public_name_is_there_and_in_the_manual() -> None:
    page = PAGE.read_text("utf-8")
    for name in rcdrv.__all__:
        assert getattr(rcdrv, name) is not None
        assert name in dir(rcdrv)
    told = {"open", "case_names", "CAPABILITIES", "Cancel", "Verdict", "Reason", "NotPassed"}
    for name in told | {"UsageError", "HostError", "DeviceLost", "EndpointError", "RcdrvError"}:
        assert name in page
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = rcdrv.no_such_name  # type: ignore[attr-defined]


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys; a = set(sys.modules); import rcdrv; print(*sorted({*sys.modules} - a))"
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["rcdrv"]


# -- what comes back -----------------------------------------------------------------------------


def test_a_ring_that_passed(direct: Opener) -> None:
    endpoint, device = direct("rk3588")
    result = endpoint.ring(3, bar=4)
    assert result.check() is result
    assert result.passed
    assert (result.verdict, result.reason, result.message) == (Verdict.PASS, None, "")
    assert str(result.location) == "BAR4+0xa0 data 0x00000000"
    assert [ring.acknowledged for ring in result.rings] == [True] * 3
    assert len(result.latencies_ns) == 3
    assert not device.endpoint.doorbell_enabled
    assert json.loads(json.dumps(result.document()))["verdict"] == "pass"


@pytest.mark.parametrize(
    ("spec", "verdict", "reason"),
    [
        ("am654", Verdict.FAIL, Reason.ENABLE_FAILED),
        ("j721e", Verdict.SKIP, Reason.NO_CAPS),
        ("generic,fault=doorbell-dead", Verdict.FAIL, Reason.SILENT),
        ("generic,fault=stuck-command", Verdict.FAIL, Reason.STUCK_COMMAND),
        ("generic,fault=vanish=30", Verdict.LOST, Reason.DEVICE_LOST),
    ],
)
def test_what_the_endpoint_came_to_is_data(
    direct: Opener, spec: str, verdict: Verdict, reason: Reason
) -> None:
    endpoint, device = direct(spec)
    result = endpoint.ring()
    assert (result.verdict, result.reason) == (verdict, reason)
    assert not result.passed
    assert result.message
    assert result.message in repr(result)
    with pytest.raises(rcdrv.DeviceLost if verdict is Verdict.LOST else NotPassed) as raised:
        result.check()
    assert raised.value.message == result.message
    document = result.document()
    assert (document["verdict"], document["reason"]) == (verdict.value, reason.value)
    # What is left enabled, as an endpoint that takes no command leaves it, is told.
    assert document["doorbell_left_enabled"] >= device.endpoint.doorbell_enabled


def test_without_waiting_nothing_is_verified(direct: Opener) -> None:
    result = direct("generic")[0].ring(wait=False)
    assert result.verdict is Verdict.UNVERIFIED
    assert not result.passed
    assert result.check() is result


def test_the_cases(direct: Opener) -> None:
    endpoint, _ = direct("rk3588")
    result = endpoint.test("pci_ep_basic", "BAR4")
    names = [str(case.name) for case in result.cases]
    assert names == [name for name in rcdrv.case_names() if "basic" in name or ".BAR4." in name]
    assert [str(case.name) for case in result.failed] == ["pci_ep_basic.LEGACY_IRQ_TEST"]
    assert result["pci_ep_basic.MSI_TEST"].verdict is Verdict.PASS
    assert (result.verdict, result.reason) == (Verdict.FAIL, Reason.IRQ_LOST)
    with pytest.raises(NotPassed, match=r"^1 of 6 cases did not pass, first pci_ep_basic\.LEGACY"):
        result.check()
    with pytest.raises(KeyError):
        _ = result["pci_ep_basic.NO_SUCH_TEST"]
    assert endpoint.test("MSI_TEST").check().passed


def test_a_device_that_is_lost_midway(direct: Opener) -> None:
    result = direct("generic,fault=vanish=30")[0].test("pci_ep_basic")
    assert result.verdict is Verdict.LOST
    with pytest.raises(rcdrv.DeviceLost):
        result.check()


# -- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda endpoint: endpoint.ring(0), "0 rings"),
        (lambda endpoint: endpoint.ring(cycles=0), "0 cycles"),
        (lambda endpoint: endpoint.ring(bar=0), "BAR0"),
        (lambda endpoint: endpoint.test("NO_SUCH_TEST"), "NO_SUCH_TEST"),
        (lambda endpoint: endpoint.test(sizes=[5 << 20]), "5242880"),
        (lambda endpoint: endpoint.test(align=3), "3"),
        (lambda endpoint: endpoint.test(destructive=["everything"]), "everything"),
        (lambda endpoint: endpoint.peek(1, 2), "0x2"),
        (lambda endpoint: endpoint.peek(1, 1 << 40), "0x10000000000"),
        (lambda endpoint: endpoint.poke(1, 0, 1 << 32), "0x100000000"),
        (lambda endpoint: endpoint.bar(6), "BAR6"),
        (lambda endpoint: endpoint.lacks("wings"), "wings"),
        (lambda endpoint: endpoint.vntb, "104c:b500"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    direct: Opener, call: Callable[[Endpoint], object], named: str
) -> None:
    with pytest.raises(rcdrv.UsageError, match=re.escape(named)):
        call(direct("generic")[0])


@pytest.mark.parametrize(
    ("name", "more", "hint"),
    [
        ("BURST_TEST", False, "`more`"),
        ("DOORBELL_TEST", True, "without `more`"),
        ("BUS_MASTER_TEST", True, "`destructive=bus-master`"),
        ("IOMMU_FAULT_TEST", False, "`destructive=iommu-fault`"),
        ("BAR9", False, "BAR"),
    ],
)
def test_a_case_that_does_not_run_is_said_how_to_run(name: str, more: bool, hint: str) -> None:
    with pytest.raises(rcdrv.UsageError) as raised:
        rcdrv.api.choose_cases(rcdrv.api.all_cases(more=more), [name])
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    "options", [{"irq": "smoke"}, {"timeout": 0}, {"timeout": float("nan")}], ids=str
)
def test_bad_options_are_refused_before_anything_is_opened(options: Any) -> None:
    with pytest.raises(rcdrv.UsageError):
        rcdrv.open("sim:rk3588", **options)


def test_capabilities(direct: Opener) -> None:
    generic, _ = direct("generic")
    assert [name for name in rcdrv.CAPABILITIES if generic.lacks(name)] == []
    endpoint, _ = direct("tegra194")
    said = {name: endpoint.lacks(name) for name in rcdrv.CAPABILITIES}
    lacking = {name for name, reason in said.items() if reason}
    assert {"intx", "bar1", "bar2", "bar3", "bar4", "bar5"} <= lacking
    assert not {"doorbell", "msi", "bar0"} & lacking
    assert "reserves BAR2" in str(said["bar2"])
    assert "no memory BAR1" in str(said["bar1"])


# -- giving it back ------------------------------------------------------------------------------


def test_an_exception_leaves_nothing_enabled(direct: Opener) -> None:
    endpoint, device = direct("generic")

    def use() -> None:
        with endpoint, endpoint.doorbell() as doorbell:
            doorbell.ring()
            assert device.endpoint.doorbell_enabled
            assert endpoint.function.dma_buffer(4096).size == 4096
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert not device.endpoint.doorbell_enabled
    assert endpoint.function.dma_buffers == 0
    endpoint.close()


def test_every_register_access_can_be_followed(direct: Opener) -> None:
    lines: list[str] = []
    endpoint, _ = direct("generic", trace=lines.append)
    assert not lines  # opening touches no register
    endpoint.ring().check()
    assert any(line.startswith("write COMMAND") for line in lines)
    assert any("DOORBELL_SUCCESS" in line for line in lines)
