"""Exported models, which embed or transform but no longer learn."""
