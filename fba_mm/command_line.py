"""What the command-line tools have in common."""

import argparse
import ast
import errno
import inspect
import os
import os.path as osp
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Optional, Union, cast

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .compat.config_names import CONFIGS, own_config
from .config import load_config, type_name
from .errors import LocalLearningError
from .local import LocalBackbone
from .localize import checkpointed, sliced
from .preflight.config_types import check_types
from .tasks import backbone_key

# A tool has no business asking the network for newer versions of a package.
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')


def run(main: Callable[[], Any]) -> None:
    """Run a tool: a user's error is one line on stderr and exit status 1, without a traceback.

    Args:
        main: The tool.
    """
    try:
        main()
    except LocalLearningError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        # Of the original MMEngine, which looks for packages by it, and of torch 2.1.
        if error.name != 'pkg_resources':
            raise
        print(
            'error: this MMEngine or torch needs pkg_resources, which newer setuptools lack: '
            "pip install 'setuptools<81'",
            file=sys.stderr,
        )
        sys.exit(1)
    except OSError as error:
        # In the middle of a log, say; checkpoints see to themselves.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f'error: {error.filename or "a file"} cannot be written ({error.strerror}): make '
            'room, and go on with --resume',
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)


class _Overrides(DictAction):
    """``DictAction`` that also takes dicts, as configs write them, and names what it can't read."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, IndexError, SyntaxError, RecursionError) as error:
            raise LocalLearningError(
                f'{option_string} {" ".join(values)}: give key=value pairs, lists as key="[a,b]", '
                'dicts as key="dict(type=\'A\', b=1)"'
            ) from error

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        # Braces within a value are a template's: epoch_{}.pth.
        if re.search(r'\bdict\(|^[\[(]*\{.*\}[\])]*$', val):
            return _plain_value(ast.parse(val, mode='eval').body)
        return DictAction._parse_iterable(val)


def _plain_value(node: ast.AST) -> Any:
    """The value of a Python expression of literals and ``dict(...)``; nothing is run.

    Args:
        node: The expression.

    Raises:
        ValueError: It is another one.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        if not node.args and all(keyword.arg for keyword in node.keywords):
            return {keyword.arg: _plain_value(keyword.value) for keyword in node.keywords}
    elif isinstance(node, (ast.List, ast.Tuple)):
        kind = list if isinstance(node, ast.List) else tuple
        return kind(_plain_value(element) for element in node.elts)
    elif isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values)
        return {ast.literal_eval(cast(ast.expr, key)): _plain_value(value) for key, value in pairs}
    return ast.literal_eval(node)


def module_count(value: str) -> Union[int, str, list]:
    """Parse a number of local modules, or a list; words are left to the backbone to judge.

    Args:
        value: As on the command line; commas make a list.
    """
    if ',' in value:
        return [module_count(part) for part in value.split(',')]
    try:
        return int(value)
    except ValueError:
        return value


def add_local(parser: argparse.ArgumentParser, what: str, several: bool = False) -> None:
    """Add ``--local``, ``--auxiliary`` and ``--memory-budget``.

    Args:
        parser: The tool's parser.
        what: What is made local, for the help.
        several: Whether the first two take several values.
    """
    nargs = '+' if several else None
    parser.add_argument(
        '--local',
        nargs=nargs,
        type=module_count,
        metavar='K',
        help=f"train {what} by local learning, in K modules; 'stages' and 'blocks' are good too, "
        "'layer1.2,layer2.1,layer3.0' cuts after these blocks, and 'auto' takes the fewest modules "
        'that fit --memory-budget',
    )
    parser.add_argument(
        '--auxiliary',
        nargs=nargs,
        metavar='KIND',
        help="with --local, shared, pooled, own or light: modules learn from the model's own head, "
        'with blocks of their own before it or, pooled, without, each from a head like it, or each '
        'from a light one, which takes less memory and time; or the name of a method, as DGL or '
        'MAN++ (default: own for image classifiers and for detectors without a neck, light for '
        'other detectors, segmentors, depth and super-resolution, shared where there is no light '
        'head)',
    )
    parser.add_argument(
        '--memory-budget',
        metavar='SIZE',
        help='what the tensors of a training step may take: 8GB, 512MB, 10GiB; '
        "CUDA's context and the allocator's fragmentation come on top. With --local "
        'auto, the fewest modules that fit are taken; tools/train.py without --local goes through '
        'all ways to train, exact ones first',
    )


def add_exact(parser: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint``, ``--checkpoint-head``, ``--slices`` and ``--no-slices``.

    Args:
        parser: The tool's parser.
    """
    parser.add_argument(
        '--checkpoint',
        type=module_count,
        metavar='K',
        help='recompute the activations of the backbone in the backward pass instead of keeping '
        "them, in K spans; 'stages' and 'blocks' are good too. The same result in less memory; "
        'with --local, within each module',
    )
    parser.add_argument(
        '--checkpoint-head',
        action='store_true',
        help='with --checkpoint and without --local: recompute the neck and dense heads, too',
    )
    slices = parser.add_mutually_exclusive_group()
    slices.add_argument(
        '--slices',
        action='store_true',
        help='compute dense losses in slices: the same result in less memory (the default with '
        '--local)',
    )
    slices.add_argument(
        '--no-slices', action='store_true', help='with --local: leave losses as they are'
    )


def apply_exact(cfg: Config, args: argparse.Namespace) -> Config:
    """Train by plain back-propagation as the arguments of :func:`add_exact` say.

    Args:
        cfg: A config.
        args: Parsed arguments, without ``--local``.

    Raises:
        LocalLearningError: The backbone is wrapped already, or an argument lacks what it goes with.
    """
    if args.checkpoint_head and args.checkpoint is None:
        raise LocalLearningError(
            '--checkpoint-head goes with --checkpoint: give --checkpoint 4, too'
        )
    if args.no_slices:
        raise LocalLearningError(
            '--no-slices goes with --local: without it, losses are left as they are unless '
            '--slices is given'
        )
    if args.checkpoint is not None:
        cfg = checkpointed(cfg, args.checkpoint, head=args.checkpoint_head)
    return sliced(cfg) if args.slices else cfg


def words(value: Any) -> str:
    """Values of an argument as on the command line.

    Args:
        value: One, or a list of several.
    """
    return ' '.join(map(str, value)) if isinstance(value, list) else str(value)


def check_local(args: argparse.Namespace, budget_alone: bool = False) -> None:
    """Refuse what goes with ``--local`` where it is missing.

    Args:
        args: Parsed arguments, :func:`add_local`'s among them.
        budget_alone: Whether ``--memory-budget`` alone is good, too.

    Raises:
        LocalLearningError: There is no ``--local``, but something that goes with it.
    """
    if args.local is not None:
        return
    if args.auxiliary is not None:
        raise LocalLearningError(
            f'--auxiliary {words(args.auxiliary)} goes with --local: give --local 4, or set '
            'model.backbone.auxiliary in the config'
        )
    if getattr(args, 'exact_from', None) is not None:
        raise LocalLearningError(
            f'--exact-from {args.exact_from} ends what --local begins: give --local 4, or set '
            'exact_from of FBAHook in the config'
        )
    if args.memory_budget is not None and not budget_alone:
        raise LocalLearningError(
            f'--memory-budget {args.memory_budget} goes with --local auto: give that, or set '
            "num_modules='auto' and memory_budget in the config's LocalBackbone"
        )


def add_trained_models(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--model``, once for each checkpoint to look at, and whether these are trusted.

    Args:
        parser: The tool's.
        what: Of the help: what to give.
    """
    parser.add_argument(
        '--model',
        nargs=3,
        action='append',
        required=True,
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help=what,
    )
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='load checkpoints that can run code'
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``.

    Args:
        parser: The tool's parser.
    """
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Overrides,
        help='override settings of the config, as key=value; lists as key="[a,b]" or key=a,b, '
        'dicts as key="dict(type=\'A\', b=1)"',
    )


def apply_cfg_options(cfg: Config, options: Optional[dict]) -> None:
    """Change a config as ``--cfg-options`` says.

    Args:
        cfg: The config.
        options: What was parsed; None if the argument wasn't given.

    Raises:
        LocalLearningError: An override doesn't fit the config.
    """
    if not options:
        return
    _check_wrapped(cfg, options)
    try:
        cfg.merge_from_dict(options)
    except (TypeError, KeyError, IndexError, AttributeError, AssertionError) as error:
        raise LocalLearningError(
            f'--cfg-options {options} do not fit the config ({error}): check the keys against it'
        ) from error


def _check_wrapped(cfg: Config, options: dict) -> None:
    """Refuse what is meant for a wrapped backbone and would go to LocalBackbone."""
    model = cfg.get('model')
    key = backbone_key(model) if isinstance(model, dict) else 'backbone'
    local = model.get(key) if isinstance(model, dict) else None
    if not isinstance(local, dict) or type_name(local.get('type')) != 'LocalBackbone':
        return
    known = inspect.signature(LocalBackbone).parameters.keys() | {'type', '_delete_'}
    for option in options:
        found = re.match(rf'model\.{key}\.(\w+)', option)
        if found and found[1] not in known:
            raise LocalLearningError(
                f'--cfg-options {option}: model.{key} is a LocalBackbone, which has no '
                f'{found[1]}: give model.{key}.backbone.{option[found.start(1) :]} for the wrapped '
                'one'
            )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that OpenMMLab's training and testing tools share.

    Args:
        parser: The tool's parser.
    """
    parser.add_argument('--work-dir', help='the directory to save logs and models in')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # torch.distributed.launch passes --local-rank, torchrun sets LOCAL_RANK.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load checkpoints even if that runs code from them; only for files of known authors',
    )


def config_from(args: argparse.Namespace) -> Config:
    """Load the config that a tool was given, with the common arguments applied.

    Args:
        args: Parsed arguments, with ``config`` and those of :func:`add_common_arguments`.

    Raises:
        LocalLearningError: The config can't be read, or an override doesn't fit it.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config)
    apply_cfg_options(cfg, args.cfg_options)
    check_types(cfg)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', _work_name(args))
    check_writable(cfg.work_dir)
    return cfg


def _work_name(args: argparse.Namespace) -> str:
    """Name of a config's own folder: two trainings of different kinds never share one."""
    name = osp.splitext(osp.basename(args.config.split('::')[-1]))[0]
    # One name stands in several folders of this package's: once for each data set.
    path = (own_config(args.config) or Path(args.config)).resolve()
    if CONFIGS in path.parents:
        name = path.relative_to(CONFIGS).with_suffix('').as_posix()
    local = getattr(args, 'local', None)
    local = '-'.join(map(str, local)) if isinstance(local, list) else local
    kinds = [local, getattr(args, 'auxiliary', None)]
    return '_'.join(
        [name, *(f'{word}{kind}' for word, kind in zip(('local', ''), kinds) if kind is not None)]
    )


def check_writable(out_dir: Union[str, Path], argument: str = '--work-dir') -> None:
    """Refuse a folder that can't be made or written to, before anything is computed for it.

    Args:
        out_dir: The folder.
        argument: What the user can choose another one with.

    Raises:
        LocalLearningError: A file is in the way, or a permission missing.
    """
    folder = osp.abspath(out_dir)
    while not osp.lexists(folder):
        folder = osp.dirname(folder)
    if not osp.isdir(folder):
        raise LocalLearningError(
            f'{out_dir} cannot be made, {folder} is a file: choose another {argument}'
        )
    try:
        writable = os.access(folder, os.W_OK | os.X_OK)
        # A superuser has all permissions, and may yet not write everywhere.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        writable = False
    if not writable:
        raise LocalLearningError(
            f'{out_dir} cannot be written to, {folder} is not writable: choose another {argument}'
        )


def build_runner(cfg: Config) -> Runner:
    """Build the runner that a config asks for.

    Args:
        cfg: The config.
    """
    return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
