"""One attempt of a job inside its worker: its specification, its status, its log. No torch, no Ray, no database."""
