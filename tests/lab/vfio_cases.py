"""What the lab's guest runs for test_vfio_device.py: ``python3 vfio_cases.py CASE ADDRESS``.

A case is a function with the name of the device that it is for: QEMU's own ``edu``
(docs/specs/edu.rst), ``igb`` (the Intel 82576) and ``xhci``. Nobody made those for rcdrv.
``$RCDRV_BACKEND`` says how the device is reached.
"""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rcdrv.address import open_function
from rcdrv.device import CONFIG_REGION, Area, IrqKind, SetIrqs
from rcdrv.errors import AccessError, DeviceLost, HostError, RcdrvError, UsageError
from rcdrv.function import Function
from rcdrv.mmio import barrier
from rcdrv.pci import Command
from rcdrv.sysfs import Paths, device_name
from rcdrv.vfio import open_device
from rcdrv.vfio.device import VfioDevice
from rcdrv.vfio.group import Container
from rcdrv.vfio.noiommu import look_up
from rcdrv.wait import Deadline

BACKEND = os.environ["RCDRV_BACKEND"]

ARM = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER
DISARM = SetIrqs.DATA_NONE | SetIrqs.ACTION_TRIGGER
PAGE = resource.getpagesize()

# edu's registers.
IDENT, LIVENESS, FACTORIAL, STATUS = 0x00, 0x04, 0x08, 0x20
IRQ_STATUS, IRQ_RAISE, IRQ_ACK = 0x24, 0x60, 0x64
DMA_SOURCE, DMA_TARGET, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
DMA_START, DMA_TO_RAM = 1, 2
EDU_BUFFER = 0x40000  # its own 4 KiB, as its DMA engine addresses them
EDU_DMA_BITS = 32 if BACKEND == "noiommu" else 28

# igb's registers.
EICS, EIMS, GPIE = 0x1520, 0x1524, 0x1514
GPIE_MSIX = 1 << 4


def failure(kind: type[RcdrvError], action: Callable[[], object]) -> RcdrvError:
    """The error of ``kind`` that ``action`` has to raise."""
    try:
        action()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def open_it(address: str) -> VfioDevice:
    """The device, through the backend that is tested."""
    device = open_device(address, BACKEND)
    assert isinstance(device, VfioDevice)
    return device


def mappings(device: VfioDevice) -> int | None:
    """How many DMA mappings the kernel has left to give. iommufd knows no such limit."""
    space = device._space
    return space.mappings_left() if isinstance(space, Container) else None


def left_open() -> list[str]:
    """What this process holds of VFIO, of its eventfds and of its DMA memory."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(link.readlink()))
        except OSError:
            continue  # the listing's own descriptor
    wanted = ("vfio", "/dev/iommu", "eventfd", "eventpoll", "rcdrv-dma")
    with Path("/proc/self/maps").open() as maps:
        return [one for one in (*links, *maps) if any(word in one for word in wanted)]


# -- edu ----------------------------------------------------------------------------------------


def edu_description(address: str) -> None:
    device = open_it(address.removeprefix("0000:"))
    assert (device.address, device.backend, device.fileno()) == (address, BACKEND, -1)
    assert device.region(0).areas == (Area(0, 1 << 20),)
    assert [device.region(index).size for index in range(1, 6)] == [0] * 5
    assert device.region(CONFIG_REGION).size in (256, 4096)
    assert not device.region(CONFIG_REGION).areas
    assert device.region(99).size == 0
    assert [device.irq_count(kind) for kind in (IrqKind.INTX, IrqKind.MSI, IrqKind.MSIX)] == [
        *(1, 1, 0)
    ]
    device.close()
    device.close()


def edu_exact_width(address: str) -> None:
    """edu answers all ones to an access of another width than 4 bytes below 0x80."""
    device = open_it(address)
    with Function(device) as function:
        mapped = function.bar(0)
        assert mapped.read32(IDENT) == 0x010000ED
        assert mapped.read64(IDENT) == (1 << 64) - 1
        mapped.write32(LIVENESS, 0x12345678)
        assert mapped.read32(LIVENESS) == 0xEDCBA987
        # The same through pread and pwrite: 8 bytes are one access, not two.
        assert device.read(0, IDENT, 4) == (0x010000ED).to_bytes(4, "little")
        assert device.read(0, IDENT, 8) == b"\xff" * 8
        device.write(0, LIVENESS, (1).to_bytes(4, "little"))
        assert device.read(0, LIVENESS, 4) == (0xFFFFFFFE).to_bytes(4, "little")
        # Only one 8-byte store sets all of a 64-bit register.
        mapped.write64(DMA_SOURCE, 0x1122334455667788)
        assert mapped.read64(DMA_SOURCE) == 0x1122334455667788
        mapped.write32(FACTORIAL, 5)
        deadline = Deadline(60)
        while mapped.read32(STATUS) & 1:
            assert not deadline.expired
        assert mapped.read32(FACTORIAL) == 120


def edu_descriptor(address: str) -> None:
    """A node that another program opened, here this one; iommufd likewise, or opened by rcdrv."""
    paths = Paths()
    node = paths.device_node(str(device_name(paths, address)))

    def passed_on(*others: int) -> tuple[int, ...]:
        return (os.open(node, os.O_RDWR), *others)

    for with_iommufd in (False, True):
        fds = passed_on(*([os.open("/dev/iommu", os.O_RDWR)] if with_iommufd else []))
        name = f"fd:{','.join(map(str, fds))}"
        with open_function(name) as function:
            assert (function.address, function.device.backend) == (address, "iommufd")
            assert function.bar(0).read32(IDENT) == 0x010000ED
            with function.dma_buffer(PAGE):
                pass
        assert not left_open(), left_open()
        failure(UsageError, partial(open_function, name))
    (fd,) = passed_on()
    command = ["rcdrv", "--device", f"fd:{fd}", "peek", "0", "0"]
    done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=False)
    assert (done.returncode, "0x010000ed" in done.stdout) == (0, True), done
    os.close(fd)


def edu_refusals(address: str) -> None:
    device = open_it(address)
    with Function(device) as function:
        for offset in (1 << 20, (1 << 20) - 2, -4):
            failure(AccessError, partial(device.read, 0, offset, 4))
            failure(AccessError, partial(device.write, 0, offset, bytes(4)))
        failure(AccessError, lambda: device.read(1, 0, 4))
        failure(AccessError, lambda: device.map(0, Area(0x1000, 0x1000)))
        failure(AccessError, lambda: device.map(CONFIG_REGION, Area(0, 256)))

        command = function.config.command
        function.config.command = command & ~Command.MEMORY
        for access in (lambda: device.read(0, 0, 4), lambda: device.write(0, 4, bytes(4))):
            error = failure(HostError, access)
            assert "does not decode" in error.message, error.message
            assert "COMMAND" in error.hint
        function.config.command = command
        assert device.read(0, 0, 4) != b"\xff" * 4


def edu_msi(address: str) -> None:
    with Function(open_it(address)) as function:
        bar = function.bar(0)
        with function.interrupts(IrqKind.MSI) as interrupts:
            assert interrupts.take() == {}
            for _ in range(3):
                bar.write32(IRQ_RAISE, 1)
                assert interrupts.wait(Deadline(60)) == {0: 1}
                bar.write32(IRQ_ACK, bar.read32(IRQ_STATUS))
            assert interrupts.wait(Deadline(0.1)) == {}
        # Turned off: it can be armed again, and so can the other kind.
        with function.interrupts(IrqKind.MSI):
            pass
        with function.interrupts(IrqKind.INTX):
            pass


def edu_intx(address: str) -> None:
    """edu holds the line until it is acknowledged, so an unmask alone fires it again."""
    device = open_it(address)
    unmask = SetIrqs.DATA_NONE | SetIrqs.ACTION_UNMASK
    with Function(device) as function:
        bar = function.bar(0)
        function.config.command &= ~Command.INTX_DISABLE
        eventfd = os.eventfd(0, os.EFD_NONBLOCK)

        def fired(within: float = 5.0) -> bool:
            deadline = Deadline(within)
            while not deadline.expired:
                try:
                    return bool(os.eventfd_read(eventfd))
                except BlockingIOError:
                    function.pause(0.01)
            return False

        assert device.set_irqs(IrqKind.INTX, ARM, 0, 1, [eventfd]) == 0
        bar.write32(IRQ_RAISE, 1)
        assert fired()
        assert not fired(0.3), "the kernel did not mask the line"
        device.set_irqs(IrqKind.INTX, unmask, 0, 1)
        assert fired(), "the line is still held, so it has to fire again"
        bar.write32(IRQ_ACK, 1)
        device.set_irqs(IrqKind.INTX, unmask, 0, 1)
        assert not fired(0.3), "the line was let go"
        bar.write32(IRQ_RAISE, 1)
        assert fired()
        bar.write32(IRQ_ACK, 1)
        device.set_irqs(IrqKind.INTX, DISARM, 0, 0)
        os.close(eventfd)


def edu_intx_by_function(address: str) -> None:
    """The same, as a driver does it: one interrupt for one request, when acknowledged in time."""
    with Function(open_it(address)) as function:
        bar = function.bar(0)
        with function.interrupts(IrqKind.INTX) as interrupts:
            for _ in range(3):
                bar.write32(IRQ_RAISE, 1)
                assert interrupts.wait(Deadline(60)) == {0: 1}
                bar.write32(IRQ_ACK, 1)
                assert interrupts.wait(Deadline(0.2)) == {}


def edu_irq_refusals(address: str) -> None:
    device = open_it(address)
    with Function(device):
        eventfd = os.eventfd(0)
        # Nothing is armed: turning off is harmless, for every kind, also twice.
        for kind in (IrqKind.INTX, IrqKind.MSI, IrqKind.MSIX):
            assert device.set_irqs(kind, DISARM, 0, 0) == 0
        failure(HostError, lambda: device.set_irqs(IrqKind.MSI, ARM, 0, 2, [eventfd, eventfd]))
        failure(HostError, lambda: device.set_irqs(IrqKind.MSIX, ARM, 0, 1, [eventfd]))
        assert device.set_irqs(IrqKind.MSI, ARM, 0, 1, [eventfd]) == 0
        failure(HostError, lambda: device.set_irqs(IrqKind.INTX, ARM, 0, 1, [eventfd]))
        # -1 takes the eventfd away; the kernel can also fire a vector itself.
        assert device.set_irqs(IrqKind.MSI, DISARM, 0, 1) == 0
        assert os.eventfd_read(eventfd) == 1
        assert device.set_irqs(IrqKind.MSI, ARM, 0, 1, [-1]) == 0
        assert device.set_irqs(IrqKind.MSI, DISARM, 0, 0) == 0
        os.close(eventfd)


def edu_dma(address: str) -> None:
    """edu's engine carries a page from one buffer of ours to another."""
    if BACKEND == "noiommu":
        pool("4")
    device = open_it(address)
    at_first = mappings(device)
    with Function(device) as function:
        bar = function.bar(0)
        with (
            function.dma_buffer(PAGE, address_bits=EDU_DMA_BITS) as source,
            function.dma_buffer(3 * PAGE, address_bits=EDU_DMA_BITS, align=1 << 16) as target,
        ):
            if at_first is not None:
                assert mappings(device) == at_first - 2
            assert target.iova % (1 << 16) == 0
            pattern = bytes(range(256)) * (PAGE // 256)
            source.memory[:] = pattern
            barrier()

            def carry(source: int, target: int, command: int) -> None:
                bar.write64(DMA_SOURCE, source)
                bar.write64(DMA_TARGET, target)
                bar.write64(DMA_COUNT, PAGE)
                bar.write64(DMA_COMMAND, command | DMA_START)
                deadline = Deadline(60)
                while bar.read64(DMA_COMMAND) & DMA_START:
                    assert not deadline.expired

            carry(source.iova, EDU_BUFFER, 0)
            carry(EDU_BUFFER, target.iova + PAGE, DMA_TO_RAM)
            barrier()
            assert bytes(target.memory[PAGE : 2 * PAGE]) == pattern
            assert not any(target.memory[:PAGE])
            assert not any(target.memory[2 * PAGE :])
        assert mappings(device) == at_first
        failure(UsageError, lambda: device.dma_unmap(0x100000, PAGE))


def edu_noiommu_dma(address: str) -> None:
    """Buffers that are given back stay reserved, and are handed out again, empty."""
    pool("4")
    with Function(open_it(address)) as function:
        with function.dma_buffer(1 << 20, align=1 << 16) as first:
            first.memory[:] = b"\xff" * (1 << 20)
            assert first.iova % (1 << 16) == 0
            with function.dma_buffer(1 << 20) as second:
                assert abs(second.iova - first.iova) >= 2 << 20
            where = {first.iova, second.iova}
        with function.dma_buffer(2 << 20) as again, function.dma_buffer(PAGE) as small:
            assert again.iova in where
            assert not any(again.memory)
            assert len(small.memory) == PAGE
            # As the page map has it, which is how the other way in finds out.
            assert look_up(again._mapping) == (again.iova, 2 << 20)
    assert not left_open(), left_open()


def edu_noiommu_refusals(address: str) -> None:
    device = open_it(address)
    with Function(device) as function:
        error = failure(UsageError, lambda: device.dma_map(1 << 20, mmap.mmap(-1, PAGE), PAGE))
        assert "use dma_allocate" in error.message
        failure(UsageError, lambda: device.dma_unmap(1 << 20, PAGE))
        pool("0")
        error = failure(HostError, lambda: function.dma_buffer(PAGE + 1))
        assert "1 of 2048 KiB are not free" in error.message, error.message
        subprocess.run(["sh", "-c", error.hint.partition(": ")[2]], check=True)
        function.dma_buffer(PAGE + 1).close()
        error = failure(
            HostError, lambda: function.dma_buffer(PAGE, align=1 << 21, address_bits=20)
        )
        assert "not below 0x100000" in error.message, error.message
        failure(HostError, lambda: function.dma_buffer(64 << 20))


def pool(pages: str) -> None:
    """Set how many huge pages the guest has."""
    Path("/proc/sys/vm/nr_hugepages").write_text(pages)


def edu_iova_ranges(address: str) -> None:
    device = open_it(address)
    space = device._space
    ranges = device.dma_ranges()
    assert ranges
    assert all(first <= last for first, last in ranges)
    # The interrupt window is none of them, nor can anything be mapped there.
    reserved = Path(f"/sys/bus/pci/devices/{address}/iommu_group/reserved_regions").read_text()
    (window,) = [int(line.split()[0], 16) for line in reserved.splitlines() if line.endswith("msi")]
    assert not any(first <= window <= last for first, last in ranges)
    with Function(device) as function, function.dma_buffer(PAGE) as buffer:
        failure(UsageError, lambda: space.map(window, PAGE, PAGE))
        failure(UsageError, lambda: space.map(ranges[-1][1] + 1, PAGE, PAGE))
        failure(UsageError, lambda: space.map(buffer.iova + 1, PAGE, PAGE))
        failure(UsageError, lambda: space.map(buffer.iova, PAGE, PAGE))
        failure(UsageError, lambda: device.dma_unmap(buffer.iova, 2 * PAGE + 1))


def edu_reset(address: str) -> None:
    with Function(open_it(address)) as function:
        assert function.device.can_reset()
        bar = function.bar(0)
        bar.write32(LIVENESS, 5)
        before = function.config.command
        function.reset()
        assert function.config.command == before
        assert bar.read32(IDENT) == 0x010000ED


def edu_nothing_left(address: str) -> None:
    assert not left_open(), left_open()
    device = open_it(address)

    def command() -> int:
        return int.from_bytes(device.read(CONFIG_REGION, 0x04, 2), "little")

    at_first = command()
    at_last = []
    close = device.close

    def note_and_close() -> None:
        at_last.append(command())
        close()

    device.close = note_and_close  # type: ignore[method-assign]
    with Function(device) as function:
        assert command() & Command.BUS_MASTER
        function.bar(0).read32(IDENT)
        function.interrupts(IrqKind.MSI)
        function.dma_buffer(PAGE)
        assert left_open()
    assert at_last == [at_first]
    assert not left_open(), left_open()


def edu_held_by_another(address: str) -> None:
    with Function(open_it(address)):
        code = f"from rcdrv.vfio import open_device; open_device({address!r}, {BACKEND!r})"
        other = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert f"in use by python3 (pid {os.getpid()})" in other.stderr, other.stderr
    open_it(address).close()


def edu_chosen(address: str) -> None:
    """Without a wish for a backend it is iommufd here; each of the two keeps the other out."""
    with Function(open_device(address)) as function:
        assert function.device.backend == BACKEND
    other = {"group": "iommufd", "iommufd": "group"}[BACKEND]
    with Function(open_it(address)):
        code = f"from rcdrv.vfio import open_device; open_device({address!r}, {other!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert f"in use by python3 (pid {os.getpid()})" in done.stderr, done.stderr
        # Nor does this process get it twice.
        for backend in ("group", "iommufd"):
            error = failure(HostError, partial(open_device, address, backend))
            assert "in use by this process" in error.message, error.message
    open_device(address, other).close()


def edu_not_for_this_user(address: str) -> None:
    """Runs as a user who may not open the node."""
    assert os.getuid()
    error = failure(HostError, lambda: open_it(address))
    words = ("only root", "as root") if BACKEND == "noiommu" else ("may not open", "udev")
    assert words[0] in error.message
    assert words[1] in error.hint


def edu_memory_limit(address: str) -> None:
    """Runs as a user who may open the node, but lock only so much memory."""
    assert os.getuid()
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
    with Function(open_it(address)) as function, function.dma_buffer(64 << 10):
        error = failure(HostError, lambda: function.dma_buffer(1 << 20))
        assert "1088 KiB would be locked, and you may lock 1024 KiB" in error.message, error.message
        assert "ulimit -l 1088" in error.hint
        function.dma_buffer(512 << 10).close()


def edu_driver_gone(address: str) -> None:
    """Follows the cure that the message gives, to the letter."""
    driver = Path(f"/sys/bus/pci/devices/{address}/driver")
    (driver / "unbind").write_text(address)
    Path(f"/sys/bus/pci/devices/{address}/driver_override").write_text("\n")
    error = failure(HostError, lambda: open_it(address))
    owner = "" if BACKEND == "noiommu" else "to a driver, not "
    assert error.message == f"{address} is not bound {owner}to vfio-pci", error.message
    for line in error.hint.splitlines()[1:]:
        subprocess.run(["sh", "-c", line], check=True)
    open_it(address).close()


def edu_wanted_back(address: str) -> None:
    """The host removes the device while it is open: REQ ends the wait, and close lets it go."""
    sysfs = Path(f"/sys/bus/pci/devices/{address}")
    remover = threading.Thread(target=(sysfs / "remove").write_text, args=("1",))
    with Function(open_it(address)) as function:
        interrupts = function.interrupts(IrqKind.MSI)
        remover.start()
        error = failure(DeviceLost, lambda: interrupts.wait(Deadline(60)))
        assert "wants the device back" in error.message
        assert remover.is_alive()
    remover.join(20)
    assert not remover.is_alive()
    assert "no such PCI device" in failure(HostError, lambda: open_it(address)).message
    Path("/sys/bus/pci/rescan").write_text("1")
    (sysfs / "driver_override").write_text("vfio-pci")
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    open_it(address).close()


def edu_no_msi(address: str) -> None:
    """On arm64 behind virtio-iommu the group backend gets no MSI (drivers/iommu/iommu.c)."""
    with Function(open_it(address)) as function:
        error = failure(HostError, lambda: function.interrupts(IrqKind.MSI))
        assert "1 MSI vector cannot be provided by this host" in error.message, error.message
        with function.interrupts(IrqKind.INTX):
            pass


# -- igb ----------------------------------------------------------------------------------------


def igb_msix(address: str) -> None:
    device = open_it(address)
    count = device.irq_count(IrqKind.MSIX)
    assert count == 10
    with Function(device) as function:
        bar = function.bar(0)
        with function.interrupts(IrqKind.MSIX, count) as interrupts:
            bar.write32(GPIE, GPIE_MSIX)
            bar.write32(EIMS, (1 << count) - 1)
            for vector in range(count):
                bar.write32(EICS, 1 << vector)
                assert interrupts.wait(Deadline(60)) == {vector: 1}, vector
        failure(UsageError, lambda: function.interrupts(IrqKind.MSIX, count + 1))
        # More than there are, past Function's own check.
        eventfds = [os.eventfd(0) for _ in range(count + 1)]
        failure(HostError, lambda: device.set_irqs(IrqKind.MSIX, ARM, 0, count + 1, eventfds))
        # A gap: vectors 0 and 2 of 3.
        assert device.set_irqs(IrqKind.MSIX, ARM, 0, 3, [eventfds[0], -1, eventfds[2]]) == 0
        assert device.set_irqs(IrqKind.MSIX, DISARM, 0, 0) == 0
        for fd in eventfds:
            os.close(fd)


def igb_bars(address: str) -> None:
    """BAR2 has I/O ports; BAR3 holds the MSI-X table, of which VFIO reads as all ones."""
    device = open_it(address)
    with Function(device) as function:
        assert not device.region(2).areas
        assert failure(UsageError, lambda: function.bar(2))
        msix = function.config.msix()
        assert msix is not None
        table = device.read(msix.table_bar, msix.table_offset, msix.table_size)
        assert table == b"\xff" * msix.table_size
        assert device.region(msix.table_bar).areas
        # I/O ports are reached by pread too: the first is IOADDR.
        assert len(device.read(2, 0, 4)) == 4


# -- without interrupt remapping ----------------------------------------------------------------


def edu_unsafe_interrupts(address: str) -> None:
    """VFIO refuses; then the cure of the message, to the letter."""
    error = failure(HostError, lambda: open_it(address))
    assert "does not isolate its interrupts" in error.message
    assert not left_open()
    subprocess.run(["sh", "-c", error.hint.splitlines()[-1]], check=True)
    edu_msi(address)


def xhci_fewer_vectors(address: str) -> None:
    """Without interrupt remapping x86 gives a function one MSI vector, whatever it asks for."""
    device = open_it(address)
    count = device.irq_count(IrqKind.MSI)
    assert count > 1
    with Function(device) as function:
        eventfds = [os.eventfd(0) for _ in range(count)]
        assert device.set_irqs(IrqKind.MSI, ARM, 0, count, eventfds) == 1
        error = failure(HostError, lambda: function.interrupts(IrqKind.MSI, count))
        assert f"only 1 of {count} MSI vectors" in error.message, error.message
        with function.interrupts(IrqKind.MSI):
            pass
        for fd in eventfds:
            os.close(fd)


def xhci_all_vectors(address: str) -> None:
    device = open_it(address)
    with Function(device) as function:
        count = device.irq_count(IrqKind.MSI)
        with function.interrupts(IrqKind.MSI, count) as interrupts:
            for vector in range(count):
                device.set_irqs(IrqKind.MSI, DISARM, vector, 1)  # the kernel fires it
                assert interrupts.wait(Deadline(60)) == {vector: 1}


def main() -> None:
    case, address = sys.argv[1:]
    globals()[case](address)


if __name__ == "__main__":
    main()
