"""Uses of the feature bank for classifiers. See README.md."""

from .bank_uses import ClassMemory, FeatureTarget, GatedContext, LogitTarget, SampleMemory

__all__ = ['ClassMemory', 'FeatureTarget', 'GatedContext', 'LogitTarget', 'SampleMemory']
