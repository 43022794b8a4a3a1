# MAN (Su 2024) on DGL: an EMA copy of the next module's first block before its auxiliary network.
method = dict(type='MAN', num_classes=10, host=dict(type='DGL'))
