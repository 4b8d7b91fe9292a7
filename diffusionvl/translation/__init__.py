"""From an autoregressive checkpoint to a block-diffusion one."""
