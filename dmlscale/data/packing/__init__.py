"""From a source to shards and an index."""
