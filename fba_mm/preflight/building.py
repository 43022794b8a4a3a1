"""Building what a config asks for, with errors that a user can read."""

import copy
import difflib
import inspect
import re
import traceback
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Iterator, Optional, Set

from mmengine.config import Config
from mmengine.registry import MODELS, Registry
from torch import nn

from ..config import config_scope
from ..errors import LocalLearningError

_PACKAGE = __name__.partition('.')[0]


@contextmanager
def readable_errors(what: str, fix: str = 'check the config') -> Iterator[None]:
    """Turn what a faulty config makes OpenMMLab raise into one line.

    Args:
        what: What is being done, as in ``'the model cannot be built'``.
        fix: What the user should do about it.

    Raises:
        LocalLearningError: Anything was raised.
    """
    try:
        yield
    except LocalLearningError:
        raise
    except Exception as error:  # The config chooses what code runs here.
        reason = reason_of(error)
        unknown = re.search(r': (\S+) is not in the (\S+(?: \S+)*?) registry', reason)
        if unknown:
            own = unknown[1] in dir(import_module(_PACKAGE))
            how = (
                f"it is this package's: set type='{_PACKAGE}.{unknown[1]}'"
                if own
                else 'check its spelling, or name the module that registers it in custom_imports'
            )
            raise LocalLearningError(
                f'{what}: nothing is registered as {unknown[1]!r} ({unknown[2]} registry), {how}'
            ) from error
        meant = argument_meant(error)
        if meant is not None:
            fix = f'is {meant!r} meant?'
        raise LocalLearningError(f'{what} ({reason}): {fix}') from error


def argument_meant(error: BaseException) -> Optional[str]:
    """The argument that a setting which nothing takes may have been meant for.

    Args:
        error: What building something from a config raised.

    Returns:
        None if it is about something else, or no argument's name is near.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is None:
        return None
    # MMEngine's function knows what it builds. What was built last, within the others, refused it.
    kind: Any = None
    cause: Optional[BaseException] = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            if frame.f_code.co_name == 'build_from_cfg':
                kind = frame.f_locals.get('obj_cls', kind)
        cause = cause.__cause__ or cause.__context__
    near = difflib.get_close_matches(found[1], arguments_of(kind), 1)
    return near[0] if near else None


def arguments_of(kind: Any) -> Set[str]:
    """What a class or a function that is built from a config takes, its bases' arguments included.

    Args:
        kind: The class or function.
    """
    functions = [vars(base).get('__init__') for base in getattr(kind, '__mro__', ())] or [kind]
    return {
        name
        for function in functions
        if inspect.isfunction(function)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name != 'self'
    }


def reason_of(error: Exception) -> str:
    """An exception's class and message in one line.

    Args:
        error: The exception.
    """
    # str() of a KeyError is the repr of its message.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    reason = ' '.join(str(message).split()) or _line_of(error)
    if reason == 'need at least one array to concatenate':
        # MMEngine's BaseDataset, which packs the list of its images.
        reason = 'the data set has no images'
    return f'{type(error).__name__}: {reason[:300]}'


def _line_of(error: Exception) -> str:
    """The assertion that failed, where nobody gave it words."""
    frames = traceback.extract_tb(error.__traceback__)
    line = (frames[-1].line or '') if frames else ''
    return line if line.startswith('assert ') else 'no reason given'


def registered(registry: Registry, kind: str, cfg: Config) -> Optional[type]:
    """What a name stands for in a config's scope.

    Args:
        registry: Where it is looked up.
        kind: The name.
        cfg: The config.

    Returns:
        None if nothing is registered under that name.
    """
    with config_scope(cfg), registry.switch_scope_and_registry(None) as own:
        return own.get(kind) if kind else None  # MMEngine would import a module without a name.


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model as the runner will, in the config's scope.

    Args:
        cfg: A complete config.

    Raises:
        LocalLearningError: It can't be built.
    """
    if not (cfg.get('model') or {}).get('type'):
        raise LocalLearningError('the config has no model: give a complete config')
    with readable_errors('the model cannot be built'), config_scope(cfg):
        # A copy: some heads write into their config, and can't be built from it again.
        model = copy.deepcopy(cfg.model)
        if cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
        return MODELS.build(model)
