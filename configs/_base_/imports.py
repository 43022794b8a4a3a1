# Importing the package registers its parts, and operators that mmcv may lack.
custom_imports = dict(imports=['fba_mm'], allow_failed_imports=False)
