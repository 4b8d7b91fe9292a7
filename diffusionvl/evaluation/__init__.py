"""Evaluation: answers to benchmarks with their cost, the paper's suites, and reports on them."""
