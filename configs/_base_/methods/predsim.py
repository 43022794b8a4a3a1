# PredSim (Nøkland and Eidnes 2019): a linear layer, and similarity matching.
method = dict(type='PredSim', num_classes=10)
