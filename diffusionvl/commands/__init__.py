"""The commands of `diffusionvl`, one file each."""
