"""The object store, S3 or a directory, and the layout of its keys. The only place that talks to S3."""
