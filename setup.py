"""Installs the package alone.

Tested versions of everything it runs on are pinned in one place, requirements.txt. What is required
here is what every installation of OpenMMLab's packages has already, so that nothing of it is
replaced: pip keeps any torch from 2.1 on, and its torchvision. OpenMMLab's own packages come in two
sets of distributions (mmengine, mmcv, mmdet, ... and onedl-mmengine, onedl-mmcv,
onedl-mmdetection, ...), and either works. The extras bring the second set, for environments that
have neither.
"""

from pathlib import Path

from setuptools import find_packages, setup

init = (Path(__file__).parent / 'fba_mm' / '__init__.py').read_text(encoding='utf-8')
version = next(line.split("'")[1] for line in init.splitlines() if line.startswith('__version__'))

runtime = ['onedl-mmengine>=0.10', 'onedl-mmcv>=2.0']
tasks = {
    'detection': [*runtime, 'onedl-mmdetection>=3.3'],
    'classification': [*runtime, 'onedl-mmpretrain>=1.2'],
    'segmentation': [*runtime, 'onedl-mmsegmentation>=1.2'],
    # mmagic has no later version, and needs these before their later changes.
    'super-resolution': [
        *runtime,
        'mmagic==1.2.0',
        'albumentations<2',
        'diffusers<0.29',
        'huggingface_hub<0.26',
        'transformers<4.46',
    ],
}

setup(
    name='fba_mm',
    version=version,
    description='Supervised local learning for OpenMMLab: FBA and the methods it is compared with',
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['fba_mm', 'fba_mm.*']),
    # What OpenMMLab's MIM looks for in a package; in a checkout, links to what stands beside it.
    package_data={
        'fba_mm': ['py.typed', *(f'.mim/**/*.{kind}' for kind in ('py', 'sh', 'yml', 'md'))]
    },
    entry_points=dict(console_scripts=['fba-mm = fba_mm.__main__:main']),
    # Those of noxfile.py, which runs the tests on each.
    python_requires='>=3.8',
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (8, 10, 11, 12)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    # The oldest supported torch is stated here alone; fba_mm/compat/torch_versions.py lists what
    # differs from there on.
    install_requires=['torch>=2.1', 'torchvision', 'numpy', 'Pillow', 'matplotlib', 'rich'],
    extras_require=dict(
        tasks,
        # For the data sets that the package builds itself, from pictures in these.
        digits=['scipy', 'scikit-image', 'scikit-learn'],
    ),
)
