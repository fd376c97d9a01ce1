"""Readers, one module a file format; each returns the same records."""
