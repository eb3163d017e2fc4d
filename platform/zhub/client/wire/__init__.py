"""What the HTTP API answers, as objects, in one module for each part of the client."""
