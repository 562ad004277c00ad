"""One run: its folder, what is written there, and who may write it."""
