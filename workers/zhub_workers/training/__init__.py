"""The training algorithm and its state, from encoded rows to the best step. No database, no store, no Ray."""
