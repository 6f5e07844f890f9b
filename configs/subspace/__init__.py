"""The subspace analysis of sections 7.2 and 7.3, one file a set of adapters."""
