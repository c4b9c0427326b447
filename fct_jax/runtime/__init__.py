"""Services of every command: processes, the device mesh, work directories, progress."""
