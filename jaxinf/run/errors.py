"""Errors of the runner that the user mends by another setting."""


class UsageError(ValueError):
    """What the user can mend on the command line or in the file; shown without a traceback."""
