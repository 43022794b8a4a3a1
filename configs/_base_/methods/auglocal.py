# AugLocal (Ma 2024): layers like the network's later ones, fewer the deeper the module. The last
# module is d + 1 blocks end to end, d = max_depth: that is up to each config's num_modules.
method = dict(type='AugLocal', num_classes=10, max_depth=2)
