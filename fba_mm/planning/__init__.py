"""Which way to train fits a memory budget: exact ones first, then local ones."""

from .plan import Plan, Planned, plan_training
from .ways import Series, Way, ways_to_train

__all__ = ['Plan', 'Planned', 'Series', 'Way', 'plan_training', 'ways_to_train']
