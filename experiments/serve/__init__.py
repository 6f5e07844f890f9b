"""An HTTP server for a base and a folder of adapters."""
