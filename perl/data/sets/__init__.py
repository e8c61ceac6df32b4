"""Datasets, a file each: `load(split, kind, ...) -> examples`, and KINDS, the kinds that it has."""
