"""What runs in the guest; this folder is put into it at each boot, and needs nothing but Python."""
