"""Installs the package alone.

Tested versions of everything it runs on are pinned in one place, requirements.txt. Nothing of
OpenMMLab is required here by name: its packages come in two sets of distributions (mmengine,
mmcv, mmdet, ... and onedl-mmengine, onedl-mmcv, onedl-mmdetection, ...), and either will do. The
extra is for whoever has neither's mmseg.
"""
from pathlib import Path

from setuptools import find_packages, setup

init = (Path(__file__).parent / 'fba_mm' / '__init__.py').read_text(encoding='utf-8')
version = next(line.split("'")[1] for line in init.splitlines() if line.startswith('__version__'))

setup(
    name='fba_mm',
    version=version,
    description='Supervised local learning for OpenMMLab: FBA and the methods it is compared with',
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['fba_mm', 'fba_mm.*']),
    python_requires='>=3.8',
    install_requires=[
        'torch>=2.4', 'torchvision', 'numpy', 'scipy', 'Pillow', 'matplotlib', 'rich', 'scikit-image',
        'scikit-learn'
    ],
    # Onto packages that are kept: pip install -e .[segmentation]. Where mmsegmentation is
    # installed, it isn't needed.
    extras_require=dict(segmentation=['onedl-mmsegmentation>=1.4']),
)
