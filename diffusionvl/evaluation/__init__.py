"""Evaluation: questions of benchmarks and records, their answers, and what these cost."""

AR, BLOCK_DIFFUSION = "ar", "block_diffusion"  # kinds of models
