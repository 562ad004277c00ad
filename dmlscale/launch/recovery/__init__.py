"""A run whose workers are lost: how that is noticed, what is worth another start, and with how many."""
