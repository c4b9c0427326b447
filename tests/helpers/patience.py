"""The time that a test waits for something that takes seconds; it is long for busy machines."""

LONG = 1200  # seconds; a child process that takes longer is taken to hang
