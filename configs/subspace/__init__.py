"""The subspace analysis of sections 7.2 and 7.3, one file per set of adapters."""
