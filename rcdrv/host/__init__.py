"""The host's side of things, read from sysfs: which functions there are and who has them."""
