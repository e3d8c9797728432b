"""What holds for all tests."""

from hypothesis import settings

# No test may fail because the machine is busy: pytest's own timeout ends what hangs.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
