"""Diffusion models of pictures: training a small one, adapting one to a style or a subject, and scores."""
