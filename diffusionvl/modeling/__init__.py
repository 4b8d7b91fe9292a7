"""What is published with a checkpoint: configuration, model, masks and decoding. Needs torch and transformers."""
