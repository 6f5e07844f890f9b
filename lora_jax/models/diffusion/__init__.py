"""Latent diffusion as Stable Diffusion 1.x and 2.x have it: U-Net, autoencoder, text encoder, their files."""
