"""Let MMEngine find mmseg under the name that its distribution has today."""

from importlib.util import find_spec

from .distributions import is_installed


def install_mmseg_name() -> None:
    """Make ``mmseg::fcn/...`` a name of configs where mmseg comes from ``onedl-mmsegmentation``.

    MMEngine looks for the distribution ``mmsegmentation``. Where there is none, it says so to
    configs that inherit from mmseg, and ``get_config`` has pip install it, over the mmseg that is
    there. Packages whose distribution has another name than their modules' are no trouble
    otherwise: MMEngine finds modules as well.

    Example:
        >>> from fba_mm.compat import install_mmseg_name
        >>> install_mmseg_name()
        >>> load_config('fba_mm::segmentation/ade20k/fcn_r50_fba.py').model.type
        'EncoderDecoder'
    """
    from mmengine.config.utils import MODULE2PACKAGE

    if find_spec('mmseg') is not None and not is_installed('mmsegmentation'):
        MODULE2PACKAGE['mmseg'] = 'mmseg'
