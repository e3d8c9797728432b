"""Programs of the guest, copied into it at each boot. They need Python only."""
