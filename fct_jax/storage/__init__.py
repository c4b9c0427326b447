"""Files that outlive a process: crash-safe writes, checksums, ids, EmbeddingSets."""
