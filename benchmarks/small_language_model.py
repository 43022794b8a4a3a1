"""A small language model of random weights, where a detector's config names one to be fetched."""

import copy
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Iterator

from mmengine.config import Config

from fba_mm.tasks.detection import CLASS_NAMES

_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?')
# That of BERT, which layers of mmdet's have as their default.
_WIDTH = 768


@contextmanager
def small_language_model(cfg: Config) -> Iterator[Config]:
    """A config whose language model is small and fetches nothing, for as long as the context lasts.

    For detectors that read text, as GLIP and Grounding DINO: BERT of one layer, which knows the
    class names of :func:`synthetic_batch`. Other configs come back as they are.

    Args:
        cfg: A config; it is not changed.

    Example:
        >>> with small_language_model(load_config('mmdet::glip/...')) as cfg:
        ...     model = MODELS.build(cfg.model)
    """
    if 'language_model' not in cfg.model:
        yield cfg
        return
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = [*_SPECIAL, *CLASS_NAMES]
    with TemporaryDirectory() as folder:
        vocabulary = Path(folder) / 'vocab.txt'
        vocabulary.write_text('\n'.join(words) + '\n')
        BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
        bert = BertConfig(
            vocab_size=len(words),
            hidden_size=_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=12,
            intermediate_size=64,
        )
        BertModel(bert, add_pooling_layer=False).save_pretrained(folder)
        cfg = copy.deepcopy(cfg)
        cfg.model.language_model.name = folder
        _name(cfg.model, folder)
        yield cfg


def _name(part: Any, folder: str) -> None:
    if isinstance(part, dict):
        if 'lang_model_name' in part:
            part['lang_model_name'] = folder
        for value in part.values():
            _name(value, folder)
