"""Where the package meets other programs: lmms-eval's plugin."""
