"""Builders that bring published data sets into TFDS's format."""
