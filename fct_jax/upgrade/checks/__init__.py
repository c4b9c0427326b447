"""Checks that run before anything is written."""
