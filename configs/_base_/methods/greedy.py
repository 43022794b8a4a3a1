# Greedy (Belilovsky 2019): pooling and a linear layer at the end of each module.
method = dict(type='Greedy', num_classes=10)
