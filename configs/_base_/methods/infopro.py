# InfoPro (Wang 2021): a classifier and a decoder. Weights go from the first module's to the last's,
# here those for ResNet-32 in 16 modules.
method = dict(
    type='InfoPro', num_classes=10, reconstruction_weight=(5, 0.2), task_weight=(0.05, 0.5)
)
