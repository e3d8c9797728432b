"""Userspace PCIe root-complex driver for bringing up PCIe endpoints, through VFIO."""

__version__ = "0.1.0"
