"""PASCAL VOC's average precision, of each class too."""

from typing import Dict, List

from mmdet.evaluation import eval_map
from mmdet.evaluation.metrics import VOCMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class ClasswiseVOCMetric(VOCMetric):
    """mmdet's ``VOCMetric``, which prints the AP of each class, with these as results, too.

    They are logged as ``pascal_voc/cat_AP``, at the first of the thresholds. They are computed a
    second time, as ``VOCMetric`` hands on their mean alone.

    Args:
        **kwargs: Those of ``VOCMetric``.

    Example:
        >>> val_evaluator = dict(type='fba_mm.ClasswiseVOCMetric', eval_mode='11points')
    """

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """``AP50``, ``mAP`` and the AP of each class.

        Args:
            results: Of all images: objects, and detections for each class.
        """
        found = super().compute_metrics(results)
        if self.metric != 'mAP':
            return found
        objects, detections = zip(*results)
        names: List[str] = list(self.dataset_meta['classes'])
        _, classes = eval_map(
            detections,
            objects,
            scale_ranges=self.scale_ranges,
            iou_thr=self.iou_thrs[0],
            dataset=names,
            logger='silent',
            eval_mode=self.eval_mode,
            use_legacy_coordinate=True,
        )
        found.update({f'{name}_AP': float(one['ap']) for name, one in zip(names, classes)})
        return found
