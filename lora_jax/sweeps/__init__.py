"""Many LoRA runs as one program: what differs between runs has a leading axis, the base has none."""
