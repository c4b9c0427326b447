"""What every command shares: processes, the device mesh, work directories, progress."""
