"""The sysfs backend: a function on a host without VFIO. Never chosen by default.

BARs are mappings of ``resourceN``, config space is ``config``, and ``enable`` enables the function
(drivers/pci/pci-sysfs.c). There are no interrupts, and no reset at open and close. DMA works where
no IOMMU translates, with physical memory as in :mod:`rcdrv.vfio.noiommu`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Sequence

from rcdrv.device import (
    CONFIG_REGION,
    Area,
    Device,
    IrqKind,
    PhysicalDma,
    RegionFlag,
    RegionInfo,
    SetIrqs,
)
from rcdrv.errors import DeviceLost, HostError, RcdrvError, UsageError
from rcdrv.mmio import MappedWindow
from rcdrv.sysfs import DRIVER, Paths, bars_in, check_present, driver_of, group_of, text_of
from rcdrv.verdict import Reason, skip
from rcdrv.vfio.device import check_bounds
from rcdrv.vfio.noiommu import PhysicalMemory, look_up

_COMMAND = 4  # offset in config space, 16 bits
_DECODE = 0x3  # PCI_COMMAND_DECODE_ENABLE
_BARS, _SIZING = range(0x10, 0x28), b"\xff" * 4


class SysfsDevice(Device, PhysicalDma):
    """A PCI function accessed by its files in sysfs.

    Owns ``config``, a descriptor of its config space, unless the constructor raises.
    """

    backend = "sysfs"

    def __init__(self, address: str, config: int, paths: Paths) -> None:
        self.address = address
        self._config = config
        self._folder = paths.function(address)
        self._paths = paths
        self._windows: dict[int, MappedWindow] = {}
        self._memory = PhysicalMemory(look_up, lambda: None, huge_only=True)
        found = bars_in((self._folder / "resource").read_text())
        self._bars = {bar.index: bar for bar in found}
        self._command = self.read(CONFIG_REGION, _COMMAND, 2)
        self._decoded: bytes | None = None
        """COMMAND while a BAR is sized."""
        try:
            (self._folder / "enable").write_text("1")
        except OSError as error:
            raise self._failure("cannot be enabled", error) from error

    # -- regions ------------------------------------------------------------------------------

    def region(self, index: int) -> RegionInfo:
        """Return one region. A BAR that shares its page cannot be mapped."""
        flags = RegionFlag.READ | RegionFlag.WRITE
        if index == CONFIG_REGION:
            return RegionInfo(index, os.fstat(self._config).st_size, flags)
        bar = self._bars.get(index)
        if bar is None:
            return RegionInfo(index, 0, RegionFlag(0))
        if not bar.is_memory or bar.address % mmap.PAGESIZE:
            return RegionInfo(index, bar.size, flags)
        return RegionInfo(index, bar.size, flags | RegionFlag.MMAP, (Area(0, bar.size),))

    def read(self, region: int, offset: int, size: int) -> bytes:
        """Read a BAR by one aligned access of 1, 2, 4 or 8 bytes, or config space in any size."""
        check_bounds(self.address, self.region(region), offset, size)
        if region != CONFIG_REGION:
            return self._window(region).read(8 * size, offset).to_bytes(size, "little")
        try:
            data = os.pread(self._config, size, offset)
        except OSError as error:
            raise self._failure("config space cannot be read", error) from error
        if len(data) != size:
            # pci_read_config() returns 64 bytes without CAP_SYS_ADMIN.
            raise HostError(
                f"{self.address}: only root may read all of config space", hint="run as root"
            )
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        check_bounds(self.address, self.region(region), offset, len(data))
        if region != CONFIG_REGION:
            window, value = self._window(region), int.from_bytes(data, "little")
            window.write(8 * len(data), offset, value)
            return
        sizing = data == _SIZING
        try:
            if offset in _BARS and sizing and self._decoded is None:
                # Real registers: the function must not decode while its address is all ones
                # (__pci_read_base() in drivers/pci/probe.c).
                self._decoded = self.read(CONFIG_REGION, _COMMAND, 2)
                off = int.from_bytes(self._decoded, "little") & ~_DECODE
                os.pwrite(self._config, off.to_bytes(2, "little"), _COMMAND)
            os.pwrite(self._config, data, offset)
            if offset in _BARS and not sizing and self._decoded is not None:
                os.pwrite(self._config, self._decoded, _COMMAND)
                self._decoded = None
        except OSError as error:
            raise self._failure("config space cannot be written", error) from error

    def _window(self, index: int) -> MappedWindow:
        if index not in self._windows:
            memory = self.map(index, Area(0, self.region(index).size))
            self._windows[index] = MappedWindow(memory, name=f"BAR{index}")
        return self._windows[index]

    def map(self, region: int, area: Area) -> mmap.mmap:
        info = self.region(region)
        if area not in info.areas:
            if region in self._bars and not self._bars[region].is_memory:
                raise HostError(
                    f"{self.address}: BAR{region} is an I/O BAR, which cannot be mapped",
                    hint="have the endpoint offer a memory BAR",
                )
            raise HostError(
                f"{self.address}: BAR{region} cannot be mapped: it is not aligned to a page",
                hint=f"add pci=resource_alignment={mmap.PAGESIZE.bit_length() - 1}@{self.address}"
                " to the kernel's command line, and reboot; or use VFIO",
            )
        try:
            fd = os.open(self._folder / f"resource{region}", os.O_RDWR | os.O_CLOEXEC)
            try:
                return mmap.mmap(fd, area.size)
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:  # ValueError: the file is smaller than the BAR
            if isinstance(error, ValueError) or error.errno == errno.ENOENT:
                raise HostError(
                    f"{self.address}: this kernel has no file in sysfs for mapping BAR{region}",
                    hint="use a kernel whose architecture has HAVE_PCI_MMAP; or use VFIO",
                ) from error
            if error.errno == errno.EINVAL:  # iomem_is_exclusive() in pci_mmap_resource()
                raise HostError(
                    f"{self.address}: BAR{region} cannot be mapped: a driver has claimed it",
                    hint="/proc/iomem shows which; iomem=relaxed on the kernel's command line "
                    "allows it",
                ) from error
            raise self._failure(f"BAR{region} cannot be mapped", error) from error

    # -- interrupts: none -----------------------------------------------------------------------

    def irq_count(self, kind: IrqKind) -> int:
        del kind
        return 0

    def set_irqs(
        self, kind: IrqKind, flags: SetIrqs, start: int, count: int, eventfds: Sequence[int] = ()
    ) -> int:
        del flags, start, eventfds
        if count:  # else it is disabled, as it is anyway
            raise HostError(
                f"{self.address}: sysfs delivers no {kind.name}", hint="use polling: `irq`"
            )
        return 0

    # -- DMA ----------------------------------------------------------------------------------

    def dma_ranges(self) -> Sequence[tuple[int, int]]:
        return [] if self._no_dma() else [(0, (1 << 64) - 1)]

    def _no_dma(self) -> str:
        """Return why DMA is impossible; empty if it is possible."""
        group = group_of(self._paths, self.address)
        if group is None:
            return ""
        kind = text_of(self._paths.group(group) / "type")
        # An identity domain does not translate:
        # Documentation/ABI/testing/sysfs-kernel-iommu_groups
        return "" if kind == "identity" else f"an IOMMU (group {group}) blocks it without VFIO"

    def dma_allocate(self, size: int, align: int, limit: int) -> tuple[int, mmap.mmap]:
        reason = self._no_dma()
        if reason:
            raise skip(
                Reason.HOST,
                f"no DMA through sysfs: {reason}",
                hint="use VFIO: rcdrv doctor; or boot with iommu.passthrough=1",
            )
        return self._memory.allocate(size, align, limit)

    def dma_map(self, iova: int, memory: mmap.mmap, size: int, fd: int = -1) -> None:
        self._memory.map(iova, 0, size)

    def dma_unmap(self, iova: int, size: int) -> None:
        self._memory.unmap(iova, size)

    # -- the whole device ---------------------------------------------------------------------

    def can_reset(self) -> bool:
        return (self._folder / "reset").exists()

    def reset(self) -> None:
        """Reset the function. The kernel saves and restores config space."""
        try:
            (self._folder / "reset").write_text("1")
        except OSError as error:
            raise self._failure("the reset failed", error) from error

    def close(self) -> None:
        """Restore COMMAND and ``enable``, and release everything. Closing twice is harmless."""
        if self._config < 0:
            return
        config, self._config = self._config, -1
        try:
            for window in self._windows.values():
                window.close()
            with contextlib.suppress(OSError):  # gone, or the kernel is locked down by now
                (self._folder / "enable").write_text("0")
            if self._command != b"\xff\xff":  # a lost device reads all ones
                with contextlib.suppress(OSError):
                    os.pwrite(config, self._command, _COMMAND)
        finally:
            os.close(config)
            # Last: with bus mastering off again, the endpoint cannot reach this memory.
            self._memory.close()

    def _failure(self, what: str, error: OSError) -> RcdrvError:
        return _failure(self._paths, self.address, what, error)


def open_sysfs(bdf: str, paths: Paths, token: str | None = None) -> SysfsDevice:
    """Open a PCI function without VFIO."""
    if token is not None:
        raise UsageError("sysfs has no VF token", hint="leave `vf_token` out, or use VFIO")
    check_present(paths, bdf)
    folder = paths.function(bdf)
    driver = driver_of(folder)
    if driver == DRIVER:
        raise HostError(
            f"{bdf} is bound to {DRIVER}, so the sysfs backend is not for it",
            hint="unset RCDRV_BACKEND: VFIO works here, and is safer",
        )
    if driver:
        raise HostError(
            f"{bdf} is bound to {driver}, which drives it",
            hint=f"if this host does not need it, as root: echo {bdf} > {folder}/driver/unbind",
        )
    power = text_of(folder / "power_state")
    if power in ("D3hot", "D3cold"):
        raise HostError(
            f"{bdf} is suspended in {power}",
            hint=f"wake it up, as root: echo on > {folder}/power/control; "
            f"then, if it stays suspended: rcdrv rescan {bdf}",
        )
    with contextlib.ExitStack() as undo:
        try:
            config = os.open(folder / "config", os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, config)
            fcntl.flock(config, fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened = SysfsDevice(bdf, config, paths)
        except BlockingIOError:
            raise HostError(
                f"{bdf} is in use by another rcdrv", hint="end the other one first"
            ) from None
        except OSError as error:
            raise _failure(paths, bdf, "cannot be opened", error) from error
        undo.pop_all()
    return opened


def _failure(paths: Paths, bdf: str, what: str, error: OSError) -> RcdrvError:
    """Return the error for a refusal of the kernel, with its fix."""
    if error.errno == errno.ENODEV or not paths.function(bdf).exists():
        return DeviceLost(
            f"{bdf}: {what}: the device is gone",
            hint="the endpoint rebooted, its link is down, or it was removed",
        )
    lockdown = text_of(paths.sys / "kernel/security/lockdown")
    if error.errno == errno.EPERM and lockdown and "[none]" not in lockdown:  # LOCKDOWN_PCI_ACCESS
        return HostError(
            f"{bdf}: {what}: the kernel is locked down",
            hint=f"use VFIO, which works there: rcdrv bind {bdf}; or turn Secure Boot off",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return HostError(f"{bdf}: {what}: only root may", hint="run as root (CAP_SYS_ADMIN)")
    if error.errno == errno.EBUSY:  # enable_store()
        return HostError(
            f"{bdf}: {what}: it has just been bound to a driver",
            hint="if this host does not need it, as root:"
            f" echo {bdf} > {paths.function(bdf)}/driver/unbind",
        )
    return HostError(
        f"{bdf}: {what}: {os.strerror(error.errno or 0)}",
        hint="the kernel's log (dmesg) may say why",
    )
