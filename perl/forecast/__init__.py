"""Forecasts of memory and arithmetic from compiled programs; see __main__.py."""
