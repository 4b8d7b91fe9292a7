"""Suites of benchmarks: run, compare, report, speed."""
