"""Let MMEngine find this package's configs by name, as it finds those of OpenMMLab's packages."""

from pathlib import Path
from typing import Optional, Tuple

# In a checkout, a link to the folder that stands beside the package.
CONFIGS = (Path(__file__).parent.parent / '.mim/configs').resolve()
_PREFIX = 'fba_mm::'


def own_config(name: str) -> Optional[Path]:
    """Where a config of this package lies; None for configs of others.

    Args:
        name: As a user or ``_base_`` gives it, ``'fba_mm::retinanet_r50_fba.py'`` or a path.
    """
    return CONFIGS / name[len(_PREFIX) :] if name.startswith(_PREFIX) else None


def install_config_names() -> None:
    """Make ``fba_mm::_base_/fba.py`` a name that configs can inherit from.

    MMEngine knows which packages have configs with names, and wants a folder in each name.
    It would also look for the types in such a config in a registry of this package's own, where
    they aren't, as they are MMDetection's, say. Again changes nothing.

    Example:
        >>> from fba_mm.compat import install_config_names
        >>> install_config_names()
        >>> Config.fromstring("_base_ = 'fba_mm::retinanet_r50_fba.py'", '.py').model.backbone.type
        'LocalBackbone'
    """
    from mmengine.config import Config

    stock = Config._get_cfg_path
    if hasattr(stock, 'stock'):
        return

    def get_cfg_path(cfg_path: str, filename: str) -> Tuple[str, Optional[str]]:
        own = own_config(cfg_path)
        return stock(cfg_path, filename) if own is None else (str(own), None)

    get_cfg_path.stock = stock
    Config._get_cfg_path = staticmethod(get_cfg_path)
