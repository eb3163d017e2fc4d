"""HTTP in, rows out: the OpenAI dialect of zhub, and what that dialect lacks beside it."""
