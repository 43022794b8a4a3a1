# AugLocal (Ma 2024): layers like the network's later ones, fewer the deeper the module.
method = dict(type='AugLocal', num_classes=10)
