"""Experiments as values: base.py holds every field, the other files each one experiment."""
