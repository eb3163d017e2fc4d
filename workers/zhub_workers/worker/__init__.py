"""The processes that run attempts: Ray actors, and the runners that fetch files, train and write artifacts."""
