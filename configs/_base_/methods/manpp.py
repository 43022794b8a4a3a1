# MAN++ (Su 2025): the next stage's first block, trained and as an EMA copy, and a learnt scale.
method = dict(type='MAN++', num_classes=10)
