"""The kernel's own endpoint functions in a guest, behind a controller on the host."""
