"""The root complex's side of the kernel's pci-epf-test endpoint function."""
