"""Where shards lie and how they come to this machine: URLs, retries, and a cache that all its processes share."""
