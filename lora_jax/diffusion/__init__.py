"""Diffusion models: schedules of noise, training losses, sampling as one program, captions."""
