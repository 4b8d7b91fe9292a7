"""Where the package meets other programs and their files: lmms-eval's plugin, LLaDA's checkpoints."""
