"""Programs over perl: launch (a job or a pipeline), sweep, tables, report, benchmarks."""
