"""Metrics, registered with mmdet.

Importing this package imports mmdet, which :mod:`fba_mm` itself does not: configs that use it say
``custom_imports = dict(imports=['fba_mm', 'fba_mm.evaluation'])``.
"""
from .classwise_voc_metric import ClasswiseVOCMetric

__all__ = ['ClasswiseVOCMetric']
