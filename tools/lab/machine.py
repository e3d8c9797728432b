"""The machines that QEMU emulates: what is different from one architecture to the other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """QEMU's options and the kernel's arguments for one architecture."""

    options: tuple[str, ...]
    kernel: tuple[str, ...]


# Both remap DMA and report each VFIO mapping to the endpoint, as real hosts' IOMMUs would.
MACHINES = {
    "x86_64": Machine(
        options=(
            *("-machine", "q35,memory-backend=memory", "-cpu", "max"),
            # Without caching-mode QEMU refuses VFIO devices; without intremap VFIO refuses MSI.
            *("-device", "intel-iommu,intremap=on,caching-mode=on"),
        ),
        # Where the host is busy, the emulated timer may be too late for the kernel's test of it,
        # which ends in a panic (timer_irq_works(), arch/x86/kernel/apic/io_apic.c).
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

# For x86_64, where ACPI else hot-plugs: the ports do it themselves. Only then do they say that
# their link is up, for which the kernel waits after a reset of the bus. But they go on saying it
# when the endpoint's process has ended, and the kernel waits for minutes for what is gone.
LINKS_UP = ("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off")

# Root ports stand from here on, one a slot: what the machines put on the bus comes before.
FIRST_SLOT = 0x10
SLOTS = 14


def root_port(number: int) -> tuple[str, str]:
    """The QEMU device and the guest's PCI address of root port ``number``."""
    slot = FIRST_SLOT + number
    device = f"pcie-root-port,id=rp{number},bus=pcie.0,addr={slot:#x}.0,chassis={number + 1}"
    return device, f"0000:00:{slot:02x}.0"
