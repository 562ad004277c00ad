"""The order of an epoch: which samples meet in a batch, whatever the number of ranks."""
