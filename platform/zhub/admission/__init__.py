"""Which queued jobs may start: fair share, quotas, budgets, and what waiting jobs are told. Claims are in ``queue``."""
