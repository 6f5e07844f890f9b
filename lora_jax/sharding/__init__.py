"""Where arrays live: logical axes, device meshes, placement, and several hosts."""
