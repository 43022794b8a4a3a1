"""Which of the two sets of OpenMMLab's distributions is installed."""

from importlib.metadata import PackageNotFoundError, version

# By the name of their package: the original distributions with their last versions, and those of
# OneDL, which go on.
_ORIGINAL = dict(
    mmengine='mmengine',
    mmcv='mmcv-lite==2.1.0',
    mmdet='mmdet==3.3.0',
    mmpretrain='mmpretrain==1.2.0',
    mmseg='mmsegmentation==1.2.2 ftfy regex',
)
_CONTINUED = dict(
    mmengine='onedl-mmengine',
    mmcv='onedl-mmcv',
    mmdet='onedl-mmdetection',
    mmpretrain='onedl-mmpretrain',
    mmseg='onedl-mmsegmentation',
)
# There is only the original, which needs these in versions before their later changes.
_MMAGIC = (
    'mmagic==1.2.0 "diffusers<0.29" "huggingface_hub<0.26" "transformers<4.46" "albumentations<2"'
)


def is_installed(distribution: str) -> bool:
    """Whether a distribution is installed; unlike a package's, its name is that of the index.

    Args:
        distribution: Such as ``'mmsegmentation'``.
    """
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def how_to_install(package: str) -> str:
    """A command that installs a package of OpenMMLab's beside those that are there.

    Args:
        package: The name that it is imported under: ``'mmdet'``, ``'mmseg'``, …; ``'torch'`` too.

    Example:
        >>> how_to_install('mmseg')  # where MMDetection 3.3 is installed as mmdet
        'pip install mmsegmentation==1.2.2 ftfy regex'
    """
    original = any(map(is_installed, ('mmengine', 'mmcv', 'mmcv-lite', 'mmdet')))
    names = dict(_ORIGINAL if original else _CONTINUED, mmagic=_MMAGIC, torch='torch torchvision')
    return f'pip install {names[package]}'
