# MAN++ (Su 2026) on DGL, as released: MAN's two copies with learned shares.
method = dict(type='MAN++', num_classes=10)
