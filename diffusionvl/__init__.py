"""diffusionvl: translate any autoregressive vision-language model into a block-diffusion one."""
