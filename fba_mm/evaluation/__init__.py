"""Metrics, registered with mmdet.

Importing this package imports mmdet, which :mod:`fba_mm` itself does not: MMEngine does so for
configs that name a metric with its prefix, ``type='fba_mm.ClasswiseVOCMetric'``.
"""

from .classwise_voc_metric import ClasswiseVOCMetric

__all__ = ['ClasswiseVOCMetric']
