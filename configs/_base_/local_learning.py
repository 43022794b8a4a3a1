# What local learning takes beside a wrapped backbone and the optimizer wrapper, for configs that
# import fba_mm already, as all in this folder do; fba.py is for others.
custom_hooks = [dict(type='FBAHook')]
# In several processes.
model_wrapper_cfg = dict(type='LocalDataParallel')
