"""Builders that convert published data sets to TFDS's format."""
