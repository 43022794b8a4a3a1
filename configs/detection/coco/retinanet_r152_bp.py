# RetinaNet-R152 on COCO by back-propagation.
_base_ = [
    '../../_base_/models/retinanet_r152.py',
    '../../_base_/datasets/coco.py',
    '../../_base_/schedules/local_90e.py',
    '../../_base_/detection_runtime.py',
]
