"""The command ``fba-mm``, also ``python -m fba_mm``: the tools, from anywhere.

    fba-mm train fba_mm::retinanet_r50_fba.py
    torchrun --nproc-per-node 8 -m fba_mm train fba_mm::retinanet_r50_fba.py --launcher pytorch

Each command is one of the scripts in ``tools/``, which an installed package has with it.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from . import __version__, command_line

_TOOLS = (Path(__file__).parent / '.mim/tools').resolve()
# By command: the script and what it is for.
COMMANDS = {
    'train': ('train.py', 'train a model by local learning, or any model of an OpenMMLab config'),
    'test': ('test.py', 'evaluate a checkpoint'),
    'export': ('export.py', 'turn a local-learning checkpoint into one of the stock config'),
    'plan': ('analysis_tools/plan_training.py', 'which way to train fits a memory budget'),
    'profile': ('analysis_tools/profile_training.py', 'memory and time of a training step'),
    'demo': ('demo.py', 'train a small RetinaNet by back-propagation and by FBA, and compare'),
}


def main() -> None:
    """Run the tool that the command line names, with the arguments that follow."""
    parser = argparse.ArgumentParser(
        prog='fba-mm',
        description='Supervised local learning for OpenMMLab',
        epilog='\n'.join(f'  {name:<9}{what}' for name, (_, what) in COMMANDS.items())
        + '\n\nfba-mm COMMAND --help tells the arguments of each.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=__version__)
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND')
    # What follows the command is the tool's.
    command = parser.parse_args(sys.argv[1:2]).command
    path = _TOOLS / COMMANDS[command][0]
    spec = importlib.util.spec_from_file_location(f'fba_mm_{path.stem}', path)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.argv = [f'fba-mm {command}', *sys.argv[2:]]
    spec.loader.exec_module(tool)
    command_line.run(tool.main)


if __name__ == '__main__':
    main()
