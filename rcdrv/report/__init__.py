"""Results and how they are shown. Nothing in here knows of devices."""
