"""Uploaded files and their rows: registration, validation, splits. No training settings, no bytes of models."""
