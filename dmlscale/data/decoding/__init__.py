"""From the bytes of a sample to a tensor."""
