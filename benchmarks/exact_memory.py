"""Memory and work of a training step by exact ways alone, predicted without computing anything.

    python benchmarks/exact_memory.py [CONFIG ...] [--shape 2 3 800 1333] [--spans 3 4 blocks]

For each config, as shipped: all tensors of a step, parameters and optimizer state included, by
:func:`fba_mm.analysis.predict_memory`; and the step's operations over those of the stock step.
"""
import argparse
from typing import Dict, Tuple

from mmengine.config import Config, ConfigDict
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from fba_mm import command_line
from fba_mm.analysis.activation_checkpointing import takes_with_cp
from fba_mm.analysis.memory_fit import predict_memory
from fba_mm.analysis.simulated_step import SimulatedStep, quiet
from fba_mm.analysis.training_twins import from_scratch
from fba_mm.config import backbone_key, load_config
from fba_mm.errors import LocalLearningError
from fba_mm.localize import checkpointed, sliced

CONFIGS = ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
           'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')


def eager_by_image(cfg: Config) -> Config:
    """Neck and head see one image at a time, gradients are applied as soon as they are there.

    Both are exact (unless gradients are clipped, which eager steps do by module), and need the hook
    and the optimizer wrapper of local learning.
    """
    backbone = cfg.model[backbone_key(cfg.model)]
    backbone.head_batch_size = 1
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), ConfigDict(type='FBAHook')]
    cfg.optim_wrapper.type = 'LocalOptimWrapper'
    return cfg


def ways(stock: Config, spans: list) -> Dict[str, Config]:
    """The exact ways by name, cheapest first."""
    found = {'as shipped': stock, 'losses in slices': sliced(stock)}
    if takes_with_cp(stock):
        with_cp = sliced(stock)
        with_cp.model[backbone_key(stock.model)].with_cp = True
        found['losses in slices, with_cp=True'] = with_cp
    for count in spans:
        name = f'losses in slices, recompute={count}'
        found[name] = checkpointed(sliced(stock), count)
        by_image = checkpointed(sliced(stock), count, 1)
        found[f'{name}, head by image, eager steps'] = eager_by_image(by_image)
        with_head = checkpointed(sliced(stock), count, 1, head=True)
        found[f'{name}, neck and head too'] = with_head
        found[f'{name}, all of that'] = eager_by_image(Config(with_head.to_dict()))
    return found


def operations(cfg: Config, shape: Tuple[int, ...]) -> int:
    """Multiply-adds of a training step that are counted: convolutions and matrix products."""
    with quiet():
        step = SimulatedStep(from_scratch(cfg), shape)
    with step.running():
        batch = step.batch()
        with FlopCounterMode(display=False) as counter:
            step(batch)
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description='Memory of exact ways to train')
    parser.add_argument('configs', nargs='*', default=CONFIGS)
    parser.add_argument('--shape', type=int, nargs=4, default=(2, 3, 800, 1333))
    parser.add_argument('--spans', type=command_line.module_count, nargs='+', default=[3])
    args = parser.parse_args()
    shape = tuple(args.shape)
    console = Console(width=120)
    for name in args.configs:
        table = Table(title=f'{name}, {"×".join(map(str, shape))}')
        for column in ('training', 'MiB', '/ as shipped', 'operations / as shipped'):
            table.add_column(column, justify='left' if column == 'training' else 'right')
        first = None
        with quiet():
            configs = ways(load_config(name), args.spans)
        for way, cfg in configs.items():
            try:
                figures = predict_memory(cfg, shape).total, operations(cfg, shape)
            except LocalLearningError as error:
                console.print(f'{way}: {error}')
                continue
            first = first or figures
            table.add_row(way, f'{figures[0] / 2**20:,.0f}', f'{figures[0] / first[0]:.2f}',
                          f'{figures[1] / first[1]:.2f}')
        console.print(table)


if __name__ == '__main__':
    command_line.run(main)
