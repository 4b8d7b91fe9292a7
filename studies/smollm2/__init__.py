"""Real pretrained weights: SmolLM2-135M-Instruct, given eyes and translated. See `scripts/reproduce_smollm2.sh`."""
