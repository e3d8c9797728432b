"""The classes that :mod:`rcdrv.record` makes behave as data classes do."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from rcdrv.record import fresh, mutable_record, record
from rcdrv.vfio import BACKENDS

ROOT = Path(__file__).parents[2]


@record
class Place:
    """Two fields, one with a default."""

    bar: int
    offset: int = 0
    unit: ClassVar[int] = 4

    @property
    def word(self) -> int:
        return self.offset // self.unit


@record
class Named(Place):
    """One field more than its base."""

    name: str = "?"


@record
class Far(Place):
    """Its base's field with another default."""

    offset: int = 0x1000


@mutable_record
class Log:
    """Fills up as it goes."""

    title: str
    lines: list[str] = fresh(factory=list)


def test_fields_come_by_position_by_name_and_by_default() -> None:
    assert (Place(1).bar, Place(1).offset) == (1, 0)
    assert Place(1, 8) == Place(offset=8, bar=1)
    assert Place(1, 8).word == 2
    assert Named(1, name="x") == Named(1, 0, "x")


def test_a_field_that_is_declared_again_stays_one_field() -> None:
    assert (Far(1).offset, Far(1, 2).offset) == (0x1000, 2)
    assert repr(Far(1)) == "Far(bar=1, offset=4096)"
    with pytest.raises(TypeError):
        Far(1, 2, 3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"bar": 2}), ((1,), {"depth": 2}), ((), {"offset": 1})],
)
def test_fields_that_do_not_fit_are_refused(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Place"):
        Place(*values, **named)


def test_values_compare_by_class_and_fields() -> None:
    assert Place(1, 2) != Place(1, 3)
    assert Place(1) != Named(1)
    assert hash(Place(1, 2)) == hash(Place(1, 2))
    assert {Place(1): "a"}[Place(1, 0)] == "a"
    assert repr(Named(1, 2, "x")) == "Named(bar=1, offset=2, name='x')"


def test_a_record_cannot_be_changed() -> None:
    place = Place(1)
    with pytest.raises(AttributeError, match=r"Place\.bar"):
        place.bar = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"Place\.bar"):
        del place.bar
    assert place == Place(1)


def test_records_survive_copies_and_other_processes() -> None:
    for one in (Named(1, 2, "x"), Log("a", ["b"])):
        assert pickle.loads(pickle.dumps(one)) == one
        assert copy.deepcopy(one) == one


def test_a_mutable_record_shares_nothing_and_has_no_hash() -> None:
    one, other = Log("a"), Log("a")
    one.lines.append("x")
    assert other.lines == []
    assert one != other
    with pytest.raises(TypeError):
        hash(one)


def test_patterns_match_by_position() -> None:
    match Named(1, 2, "x"):
        case Named(bar, offset, name):
            assert (bar, offset, name) == (1, 2, "x")


# -- the path of `rcdrv ring` ---------------------------------------------------------------------

RING = """
    address cli cli.common cli.reconnect cli.ring device dma epf_test epf_test.answer
    epf_test.block epf_test.doorbell epf_test.driver epf_test.explain epf_test.outcome
    epf_test.probe epf_test.registers epf_test.ring errors function interrupts machine mmio
    parts pci record verdict vfio_user vfio_user.caller vfio_user.client vfio_user.messages
    vfio_user.version vfio_user.wire wait
"""
"""What `rcdrv ring` imports of rcdrv, over vfio-user. Each module is a part of its start."""

KERNEL = """
    sysfs vfio vfio.device vfio.group vfio.ioctl vfio.iommufd vfio.noiommu vfio.refusals vfio.sysfs
    vfio.uapi
"""
"""What the backends of kernel VFIO import besides."""

MESSAGE = "cli.options"
"""What a `rcdrv ring` that fails imports besides, to print its message."""


def loaded(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(f'rcdrv.{one}' for one in modules)}; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"]
    return set(subprocess.check_output(command, text=True).split())


def test_what_ring_imports() -> None:
    start = loaded("cli.ring", "vfio_user.client")
    assert sorted(RING.split()) == sorted(name[6:] for name in start if name.startswith("rcdrv."))
    slow = {"dataclasses", "inspect", "typing", "pathlib", "shutil", "ctypes.util"}
    assert not slow & (start | loaded("cli.ring", MESSAGE))
    with_kernel = loaded("cli.ring", "vfio_user.client", *(f"vfio.{one}" for one in BACKENDS))
    more = {name[6:] for name in with_kernel - start if name.startswith("rcdrv.")}
    assert sorted(KERNEL.split()) == sorted(more)


def test_what_the_suite_does_not_import() -> None:
    """importlib.resources brings archives and temporary files: a third of the start; the second
    suite is ten modules, each compiled and set up for nothing."""
    start = loaded("cli.test", "results.baseline; rcdrv.results.baseline.shipped()")
    assert "rcdrv.epf_test.suite" in start
    assert not start & {"importlib.resources", "tempfile", "shutil", "random"}
    choose = "rcdrv.api.choose_cases(rcdrv.api.all_cases(), ['DOORBELL_TEST'])"
    assert "rcdrv.epf_test.more" not in loaded("cli.test", f"api; {choose}")


def test_others_use_dataclasses_and_typing() -> None:
    for source in (ROOT / "rcdrv").rglob("*.py"):
        name = ".".join(source.relative_to(ROOT / "rcdrv").with_suffix("").parts)
        if name.removesuffix(".__init__") not in {
            "__init__",
            MESSAGE,
            *RING.split(),
            *KERNEL.split(),
        }:
            text = source.read_text()
            assert "from rcdrv.record" not in text, f"{source}: use dataclasses"
            assert "\nTYPE_CHECKING = False" not in text, f"{source}: use typing"
