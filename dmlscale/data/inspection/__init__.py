"""What a packed dataset holds, and whether it is what was packed."""
