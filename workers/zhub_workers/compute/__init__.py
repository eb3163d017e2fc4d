"""Device work for one or several training jobs together: batches, losses, shards. No algorithm, no files."""
