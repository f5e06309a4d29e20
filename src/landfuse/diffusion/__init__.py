"""The first stage of BDGF: a denoiser of all modalities, its training in balance, and its features as rasters."""
