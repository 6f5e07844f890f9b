"""GGUF, the file format of llama.cpp: the container and its packed blocks; nothing here knows models."""
