"""The root complex's side of pci-epf-vntb, the endpoint as a non-transparent bridge."""
