# RetinaNet-R101 on VOC 2007 by back-propagation.
_base_ = [
    '../../_base_/models/retinanet_r101.py',
    '../../_base_/datasets/voc2007.py',
    '../../_base_/schedules/local_90e.py',
    '../../_base_/detection_runtime.py',
]
model = dict(bbox_head=dict(num_classes=20))
