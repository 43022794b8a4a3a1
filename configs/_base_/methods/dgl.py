# DGL (Belilovsky 2020): three 1×1 convolutions and three linear layers.
method = dict(type='DGL', num_classes=10)
