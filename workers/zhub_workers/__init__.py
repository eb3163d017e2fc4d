"""Everything that needs torch or ray: training, evaluation, serving, and the agent that drives Ray."""
