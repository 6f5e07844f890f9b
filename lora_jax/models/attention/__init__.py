"""Attention over packed rows, by XLA or by the kernels that accelerators have for it."""
