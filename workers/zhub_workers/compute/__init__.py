"""Device work for one or several training jobs together: requests, batches, losses, shards. No algorithm, no files."""
