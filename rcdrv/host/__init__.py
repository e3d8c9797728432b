"""The host's side: find PCI functions, bind them, rescan them, diagnose the host."""
