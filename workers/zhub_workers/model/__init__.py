"""Base models, their bases, adapters and generation: what torch computes of one model. No jobs, no training loop."""
