"""Damaged files and flags against the doors of perl: only documented errors may come out."""
