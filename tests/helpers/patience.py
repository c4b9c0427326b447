"""How long a test waits for something that takes seconds: long, since machines can be busy."""

LONG = 1200  # seconds; a child process that takes longer hangs
