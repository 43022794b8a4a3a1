# EDSR ×2 on built photos by back-propagation.
_base_ = [
    '../_base_/models/edsr_x2.py',
    '../_base_/datasets/photo_pairs.py',
    '../_base_/super_resolution_runtime.py',
]
