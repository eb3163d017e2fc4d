"""The Ray Serve application and the engine that answers requests. No database."""
