"""The versions that are tested: ``nox -l`` lists the rows, ``nox -s NAME`` runs one.

    pip install nox
    nox                                          # all but the compiled row, one after the other
    nox -s classic-2.1.2-py3.8                   # one of them
    nox -R -s classic-2.1.2-py3.8 -- tests/test_checkpoint    # again, another part of the suite

Each row is an environment of its own, as a user has it before this package comes. The row checks
that installing the package changes nothing in it, runs the suite, and goes through a short
training, test, export and resumption (``tests/version_matrix.py``), whose losses and checkpoints
are compared with those of the rows that ran before. Python has to be there in the version that a
row names. An environment takes about 5 GB.
"""

import nox

CLASSIC = ('mmengine==0.10.7', 'mmdet==3.3.0')
CLASSIC_TASKS = ('mmpretrain==1.2.0', 'mmsegmentation==1.2.2', 'ftfy', 'regex')
ONEDL = (
    'onedl-mmengine==0.10.12',
    'onedl-mmcv==2.3.6',
    'onedl-mmdetection==3.5.1',
    'onedl-mmpretrain==1.3.6',
    'onedl-mmsegmentation==1.4.2',
)
LITE = 'mmcv-lite==2.1.0'
TOOLS = (
    'hypothesis',
    'pytest',
    'pytest-xdist',
    'scipy',
    'scikit-image',
    'scikit-learn',
    'setuptools<80',
    'wheel',
)

# Whatever installs, pip or uv.
_LIST = """
from importlib.metadata import distributions
for one in distributions():
    print(one.metadata['Name'], one.version)
"""

# Name: Python, and the packages.
ROWS = {
    'classic-2.1.2-py3.10': (
        '3.10',
        'torch==2.1.2',
        'torchvision==0.16.2',
        'numpy<2',
        LITE,
        *CLASSIC,
        *CLASSIC_TASKS,
    ),
    'classic-2.1.2-py3.8': (
        '3.8',
        'torch==2.1.2',
        'torchvision==0.16.2',
        'numpy<2',
        LITE,
        *CLASSIC,
        *CLASSIC_TASKS,
    ),
    'classic-2.4.1-py3.11': (
        '3.11',
        'torch==2.4.1',
        'torchvision==0.19.1',
        'numpy<2',
        LITE,
        *CLASSIC,
        *CLASSIC_TASKS,
    ),
    'detection-2.1.2-py3.11': (
        '3.11',
        'torch==2.1.2',
        'torchvision==0.16.2',
        'numpy<2',
        LITE,
        *CLASSIC,
    ),
    'onedl-2.11.0-py3.12': ('3.12', 'torch==2.11.0', 'torchvision==0.26.0', *ONEDL),
    'onedl-newest-py3.11': ('3.11', '-r', 'requirements.txt'),
    # Compiles mmcv's operators, which takes longest of all; on as many cores as MAX_JOBS says.
    'compiled-2.1.2-py3.10': (
        '3.10',
        'torch==2.1.2',
        'torchvision==0.16.2',
        'numpy<2',
        *CLASSIC,
        *CLASSIC_TASKS,
    ),
}

nox.options.sessions = [name for name in ROWS if not name.startswith('compiled')]


def _define(name: str, python: str, *packages: str) -> None:

    @nox.session(name=name, python=python)
    def row(session: nox.Session) -> None:
        session.install(*packages, *TOOLS)
        if name.startswith('compiled'):
            session.install(
                '--no-build-isolation',
                '--no-cache-dir',  # A wheel that was built without the operators may lie there.
                '--no-deps',
                '--no-binary',
                'mmcv',
                'mmcv==2.1.0',
                env=dict(MMCV_WITH_OPS='1', FORCE_CUDA='0'),
            )
        before = _installed(session)
        session.install('-e', '.')
        changed = before - _installed(session)
        if changed:
            session.error(f'installing the package replaced {", ".join(sorted(changed))}')
        env = dict(OMP_NUM_THREADS='1', NO_ALBUMENTATIONS_UPDATE='1')
        session.run('python', '-m', 'pytest', *(session.posargs or ['-n', '2', 'tests']), env=env)
        session.run('python', '-m', 'tests.version_matrix', name, env=env)


def _installed(session: nox.Session) -> set:
    # Nothing is printed where an environment is used again as it is: nothing is installed there.
    lines = session.run_install('python', '-c', _LIST, silent=True)
    return set((lines or '').splitlines())


for _name, _row in ROWS.items():
    _define(_name, *_row)
