"""Checkpoint folders: loading, saving, exporting, and what goes with the weights."""
