"""The finished pipeline, for every test of a job."""

from toyrun import toyrun  # noqa: F401
