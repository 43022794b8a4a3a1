"""How a backbone unrolls, and where it is cut.

A new backbone family is one new file in this folder: it is imported here by itself.
"""

from importlib import import_module
from pkgutil import iter_modules

from .balance import cut
from .cut_point import CutPoint, LaterBlock, StageMap, cut_points
from .family import backbone_family, unroll
from .footprint import Footprint, check_segments, levels_of, trace_footprints
from .segment import IMAGES, Segment, Unrolled, run_submodule
from .spans import Recompute, recompute_spans

for _module in iter_modules(__path__):
    import_module(f'{__name__}.{_module.name}')

__all__ = [
    'IMAGES',
    'CutPoint',
    'Footprint',
    'LaterBlock',
    'Recompute',
    'Segment',
    'StageMap',
    'Unrolled',
    'backbone_family',
    'check_segments',
    'cut',
    'cut_points',
    'levels_of',
    'recompute_spans',
    'run_submodule',
    'trace_footprints',
    'unroll',
]
