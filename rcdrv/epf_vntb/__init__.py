"""The root complex's side of pci-epf-vntb, an endpoint that is a non-transparent bridge."""
