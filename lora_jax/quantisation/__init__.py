"""Weights of frozen layers in four to eight bits: the packed forms, and the layers that hold them."""
