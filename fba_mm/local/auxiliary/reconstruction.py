"""FBA's auxiliary network for networks that make images, such as those for super-resolution."""

from typing import Dict, Optional

from mmengine.registry import MODELS
from torch import Tensor, nn

from ...arguments import check_count
from ...errors import LocalLearningError
from ...method_owner import method_owner
from ..kept_state import unchanged_state
from ..local_step import LocalStep
from ..partition import IMAGES, CutPoint
from ..partition.reconstruction import FIRST_MAP
from ..task_loss import Losses, StubbableBackbone
from .base import Auxiliary


@MODELS.register_module()
class SLMReconstruction(Auxiliary):
    """Makes an image of the module's map: one residual block, then a light reconstruction head.

    The head adds the input images, enlarged, to what it makes of the map. With ``skip``, it also
    adds the first convolution's map, which the feature bank holds, before it enlarges the module's,
    as EDSR's own long skip does (FBA paper, equation 6). The model's own loss compares the image
    with the target.

    Args:
        cut_point: Where the auxiliary network sits; :class:`LocalBackbone` gives it.
        channels: Channels of the own head's enlarged maps, 16 unless given.
        head: ``'own'``: a light head for each module. ``'shared'``: the network's own last layers,
            which then learn from all modules; it takes more memory and time.
        residual: ``'bicubic'`` or ``'bilinear'``: the own head adds details to the input images,
            enlarged so, and the module learns these alone. ``'network'``: it does as the network
            does. None: as the network does if that adds its enlarged input, else ``'bicubic'``.
        skip: Own heads of all modules add the first map, from the bank. Unless it is True, that of
            the module that makes the first map does: a later one then has to bring along all that
            an image takes, which leaves more to the modules after it. The shared head always adds
            what the network adds.
        loss_weight: Factor of the module's losses.
        init_cfg: Initialization config.

    Raises:
        LocalLearningError: The network makes no images, an option is unknown, ``channels``,
            ``residual`` or ``skip`` come with the shared head, or the network's last layers can't
            be shared.

    Example:
        >>> auxiliary = dict(type='SLMReconstruction', channels=16)
    """

    def __init__(
        self,
        cut_point: CutPoint,
        channels: Optional[int] = None,
        head: str = 'own',
        residual: Optional[str] = None,
        skip: Optional[bool] = None,
        loss_weight: float = 1.0,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(cut_point, loss_weight, init_cfg)
        if cut_point.reduced_head is None:
            raise LocalLearningError(
                'SLMReconstruction is for networks that make images, and this backbone makes maps '
                "for a head: take auxiliary=dict(type='SLM')"
            )
        if head not in ('own', 'shared'):
            raise LocalLearningError(
                f"auxiliary.head={head!r}: an SLMReconstruction's is 'own' or 'shared'"
            )
        if residual not in (None, 'bicubic', 'bilinear', 'network'):
            raise LocalLearningError(
                f"auxiliary.residual={residual!r}: give 'bicubic', 'bilinear', 'network' or None"
            )
        given = dict(channels=channels, residual=residual, skip=skip)
        option = next((name for name, value in given.items() if value is not None), None)
        if head == 'shared' and option is not None:
            raise LocalLearningError(
                f"auxiliary.{option} is one of the own head, and head='shared' takes the network's "
                f"layers as they are: leave {option} out, or set head='own'"
            )
        if channels is not None:
            check_count('auxiliary.channels', channels)
        elsewhere = set(cut_point.last.reads) - {FIRST_MAP, IMAGES}
        if head == 'shared' and elsewhere:
            raise LocalLearningError(
                "auxiliary.head='shared' gives every module the network's last layers, and those "
                f'of this one fuse the outputs of all its blocks ({", ".join(sorted(elsewhere))}), '
                "which a module in the middle does not have: set head='own'"
            )
        self.skip = bool(skip)
        self.block = cut_point.reduced_block(cut_point.channels, cut_point.channels, 1)
        self.head: Optional[nn.Module] = None
        if head == 'own':
            self.head = cut_point.reduced_head(16 if channels is None else channels, residual)

    def image(self, x: Tensor, step: LocalStep) -> Tensor:
        """The image that the module can make, (N, 3, scale * H, scale * W).

        Args:
            x: Output of the module, (N, C, H, W).
            step: The batch and the bank.
        """
        x = self.block(x)
        if self.head is not None:
            known = self._kept(FIRST_MAP, step) if self.skip else step.kept.get(FIRST_MAP)
            return self.head(x, known, step.images)
        kept = (self._kept(name, step) for name in self.cut_point.last.reads)
        # Without a bank nothing is added: the skip of an addition is a zero for each image.
        zero = x.new_zeros(1, 1, 1, 1).expand(len(x), 1, 1, 1)
        kept = (zero if feature is None else feature for feature in kept)
        # As a head, the last layers keep what the network's own pass makes of them.
        with unchanged_state(step.source.backbone):
            return self.cut_point.last.run(step.source.backbone, x, *kept)

    def _kept(self, name: str, step: LocalStep) -> Optional[Tensor]:
        if name == IMAGES:
            return step.images
        # A map that the module itself has made is no banked one: it learns through it.
        return step.kept[name] if name in step.kept else step.bank.get(name)

    def loss(self, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> Losses:
        """The model's losses on the module's image. See :class:`Auxiliary`."""
        return step.head_loss(step.model, step.source, self.image(x, step), self.loss_weight)

    def check(self, model: nn.Module, source: StubbableBackbone) -> None:
        """See :class:`Auxiliary`."""
        if method_owner(model, 'train_step').__name__ != 'BaseModel':
            raise LocalLearningError(
                f'{type(model).__name__} trains in steps of its own, as GANs do, and local '
                "learning follows the step of one loss: train the generator in mmagic's "
                'BaseEditModel, by its pixel_loss'
            )

    # The loss is the model's own, whatever makes the image.
    shares_head = True

    def check_module_parallel(self) -> None:
        """See :class:`Auxiliary`."""
        if self.head is None:
            raise LocalLearningError(
                "auxiliary.head='shared' trains the network's last layers from all modules, and "
                "one process alone can hold them: set auxiliary.head='own'"
            )

    def check_bank(self, scope: str) -> None:
        """See :class:`Auxiliary`."""
        if scope == 'all':
            raise LocalLearningError(
                "SLMReconstruction reads the first map, which scope='past' banks, and nothing that "
                "the extra pass of scope='all' could add: set scope='past' in FBAHook"
            )
