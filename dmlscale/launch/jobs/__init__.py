"""Commands as jobs of a Ray cluster: submit, follow, list, stop; and what a job does first when it is there."""
