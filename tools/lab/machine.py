"""Machines that QEMU emulates, by architecture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """QEMU's options and the kernel's arguments for one architecture."""

    options: tuple[str, ...]
    kernel: tuple[str, ...]


# Both have an IOMMU, like real hosts, and report each VFIO mapping to the endpoint.
MACHINES = {
    "x86_64": Machine(
        options=(
            *("-machine", "q35,memory-backend=memory", "-cpu", "max"),
            # Without caching-mode QEMU refuses VFIO devices; without intremap VFIO refuses MSI.
            *("-device", "intel-iommu,intremap=on,caching-mode=on"),
        ),
        # On a busy host the emulated timer may fail the kernel's test, which ends in a panic
        # (timer_irq_works(), arch/x86/kernel/apic/io_apic.c).
        kernel=("console=ttyS0", "intel_iommu=on", "no_timer_check"),
    ),
    "aarch64": Machine(
        options=(
            *("-machine", "virt,gic-version=3,its=on,memory-backend=memory"),
            # A real core type: "max" would not show the alignment faults of device memory.
            *("-cpu", "cortex-a76"),
            # The emulated SMMUv3 cannot report mappings, so QEMU refuses VFIO devices behind it.
            *("-device", "virtio-iommu-pci"),
        ),
        kernel=("console=ttyAMA0",),
    ),
}

# For x86_64: hot-plug by the ports instead of ACPI. Only then do ports report that their link is
# up, for which the kernel waits after a reset of the bus. They still report it after the endpoint's
# process has ended; the kernel then waits minutes for the function.
LINKS_UP = ("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off")

# First slot of the root ports, one per slot; the machines' own devices are below.
FIRST_SLOT = 0x10
SLOTS = 14


def root_port(number: int) -> tuple[str, str]:
    """Return the QEMU device of root port ``number``, and its PCI address in the guest."""
    slot = FIRST_SLOT + number
    device = f"pcie-root-port,id=rp{number},bus=pcie.0,addr={slot:#x}.0,chassis={number + 1}"
    return device, f"0000:00:{slot:02x}.0"
