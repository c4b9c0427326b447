"""Carrying an upgrade out: plan, journal, translation, re-embedding, rollback."""
