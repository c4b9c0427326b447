"""Carrying out an upgrade: plan, journal, translation, re-embedding, rollback."""
