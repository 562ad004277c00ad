"""What a run will need: memory, bytes and time per step, before any worker is started."""
