import dataclasses
import io
import json
import re

import pytest
import torch
from mmcv import imread
from rich.console import Console

from fba_mm import localize
from fba_mm.analysis import StepMemory, TrainingStep, measure_step
from fba_mm.analysis.peak_split import ROLES
from fba_mm.analysis.profile_report import print_profile, ratios, save_profile
from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.analysis.training_profile import (
    Variant,
    VariantProfile,
    check_device,
    profile_training,
)
from fba_mm.errors import LocalLearningError
from fba_mm.planning.baselines import baselines

from .small_configs import detector, local_detector, super_resolution

pytestmark = pytest.mark.slow

SHAPE = (2, 3, 96, 96)
MIB = 2**20


@pytest.fixture(scope='module')
def lines():
    return []


@pytest.fixture(scope='module')
def profiles(lines):
    """Of a detector in three modules and its baselines, each timed once."""
    torch.manual_seed(0)
    cfg = local_detector(light=True, apply='end')
    kinds = ['bp', 'checkpointing', 'accumulation', 'forward']
    return profile_training(baselines(cfg, 2, kinds), SHAPE, rounds=1, report=lines.append)


def profile_one(cfg, shape=SHAPE, **kwargs):
    """The profile of a config alone."""
    kwargs = dict(dict(rounds=0, report=lambda line: None), **kwargs)
    return profile_training(baselines(cfg, shape[0], [])[:1], shape, **kwargs)[0]


def test_the_split_is_the_whole(profiles):
    assert [profile.kind for profile in profiles] == [
        'local',
        'bp',
        'checkpointing',
        'checkpointing',
        'checkpointing',
        'forward',
    ]
    for profile in profiles:
        assert set(profile.at_peak) == set(ROLES)
        assert sum(profile.at_peak.values()) == profile.memory.peak_bytes > 0
        assert min(profile.at_peak.values()) >= 0
        assert max(nbytes for _, nbytes in profile.memory.timeline) == profile.memory.peak_bytes
        # After the first step these are there already.
        assert profile.at_peak['parameters'] == profile.at_peak['optimizer_state'] == 0


def test_the_peak_is_the_one_stated_elsewhere(profiles):
    """That of the second step, above what is there before it."""
    local = profiles[0]
    torch.manual_seed(0)
    step = TrainingStep(local_detector(light=True, apply='end'))
    data = synthetic_batch(step.model, SHAPE)
    step(data)
    assert measure_step(lambda: step(data)).peak_bytes == local.memory.peak_bytes


def test_what_belongs_to_whom(profiles):
    local, bp, checkpointing, *_, forward = profiles
    assert local.at_peak['auxiliary'] > 0 and local.resident['auxiliary'] > 0
    for stock in profiles[1:]:
        assert stock.at_peak['auxiliary'] == stock.at_peak['bank'] == 0
        assert stock.resident['auxiliary'] == 0
        assert stock.resident['parameters'] == local.resident['parameters']
        assert not stock.modules
    # One momentum for each parameter; buffers have none, and running statistics aside are small.
    assert bp.resident['optimizer_state'] == pytest.approx(bp.resident['parameters'], rel=0.05)
    assert forward.resident['optimizer_state'] == 0 == forward.at_peak['gradients']
    assert forward.memory.peak_bytes < checkpointing.memory.peak_bytes < bp.memory.peak_bytes


def test_several_take_turns():
    variants = baselines(local_detector(), 2, ['bp'])
    first = profile_training(variants, SHAPE, rounds=0, report=lambda line: None)
    finest = baselines(local_detector(num_modules='blocks', light=True), 2, [])
    both = profile_training([*variants, *finest], SHAPE, rounds=1, report=lambda line: None)
    assert [p.kind for p in both] == ['local', 'bp', 'local']
    assert [p.memory.peak_bytes for p in both[:2]] == [p.memory.peak_bytes for p in first]
    assert len(both[2].modules) > len(both[0].modules)
    assert all(len(p.seconds) == 1 for p in both)


def test_modules(profiles):
    local = profiles[0]
    assert [segments.split()[0] for segments, _ in local.modules][0] == 'stem'
    assert len(local.modules) == 3
    assert 0 < max(peak for _, peak in local.modules) <= local.memory.peak_bytes
    if local.peak_phase.startswith('module'):
        assert max(peak for _, peak in local.modules) == local.memory.peak_bytes


def test_the_bank_is_seen_while_it_is_held():
    """The first module has the largest peak: only looking ahead has filled the bank by then."""
    for scope, banked in (
        ('all', 2 * 4 * (8 * 64**2 + 16 * 32**2 + 32 * 16**2 + 64 * 8**2)),
        ('past', 0),
        ('off', 0),
    ):
        local = profile_one(local_detector(scope=scope), (2, 3, 256, 256))
        assert local.peak_phase == 'module 1'
        assert local.at_peak['bank'] == banked


def test_maps_kept_for_a_skip_are_the_banks():
    local = profile_one(localize(super_resolution(), 3), (2, 3, 16, 16))
    assert local.peak_phase.startswith('module 2')
    assert local.at_peak['bank'] == 4 * 2 * 8 * 16**2  # the first map
    assert [segments for segments, _ in local.modules] == [
        'stem ... body.1',
        'body.2 ... body.3',
        'body.4 ... tail',
    ]


def test_progress_and_time(profiles, lines):
    left_out = [line for line in lines if 'left out' in line]
    assert [line.split(':')[0] for line in lines if line not in left_out] == [
        *(profile.name for profile in profiles),
        'timing, round 1 of 1',
    ]
    assert re.fullmatch(
        rf'{re.escape(profiles[0].name)}: [\d.]+ MiB, its first step [\d.]+ s \(1 of 9\)', lines[0]
    )
    assert re.fullmatch(r'timing, round 1 of 1: about \d+ s left', lines[-1])
    assert [line.split(':')[0] for line in left_out] == [
        'accumulation, 1 image at a time',
        'accumulation, 1 image at a time, checkpointing, 3 spans',
        'accumulation, 1 image at a time, checkpointing, 3 spans, neck and head',
    ]
    assert all('batch normalization is trained' in line for line in left_out)
    assert all(len(profile.seconds) == 1 and profile.median_seconds > 0 for profile in profiles)


def profile(kind, peak, *seconds):
    memory = StepMemory(
        peak, 0, [(0.0, 0), (1.0, peak)], [], 2.0, [('forward', 1), ('update', peak)]
    )
    return VariantProfile(
        kind,
        kind,
        memory,
        dict(dict.fromkeys(ROLES, 0), activations=peak),
        dict(parameters=7, optimizer_state=0, auxiliary=0),
        [],
        list(seconds),
    )


def test_ratios_are_of_medians():
    profiles = [profile('local', 3 * MIB, 9.0, 3.0, 2.0), profile('bp', 6 * MIB, 1.0, 1.0, 7.0)]
    assert ratios(profiles[0], profiles) == dict(
        peak_to_bp=0.5, time_to_bp=3.0, peak_to_checkpointing=None, time_to_checkpointing=None
    )
    untimed = [profile('local', 3 * MIB), profile('checkpointing', MIB)]
    assert ratios(untimed[0], untimed) == dict(
        peak_to_bp=None, time_to_bp=None, peak_to_checkpointing=3.0, time_to_checkpointing=None
    )
    assert profiles[0].peak_phase == 'update'


def test_tables(profiles):
    text = io.StringIO()
    print_profile(Console(file=text, width=120), profiles, 'A title', details=True)
    text = text.getvalue()
    assert 'A title' in text and '…' not in text
    for profile in profiles:
        assert f'{profile.memory.peak_bytes / MIB:.1f}' in text and profile.name in text
    assert 'stem' in text and 'neck and head' in text
    without = io.StringIO()
    untimed = [dataclasses.replace(one, seconds=[]) for one in profiles if one.kind != 'local']
    print_profile(Console(file=without, width=120), untimed, 'A title', details=True)
    assert 'time' in text and 'time' not in without.getvalue()
    assert 'auxiliary' in text and 'auxiliary' not in without.getvalue()
    short = io.StringIO()
    print_profile(Console(file=short, width=120), profiles, 'A title')
    assert 'stem' not in short.getvalue() and 'K = 1' not in short.getvalue()
    rows = [line.split()[-1] for line in short.getvalue().splitlines() if 'spans' in line]
    assert rows == [profiles[3].peak_phase.split()[-1]]


def test_one_module_is_no_local_learning():
    text = io.StringIO()
    profile = profile_one(local_detector(num_modules=1))
    assert profile.is_exact
    print_profile(Console(file=text, width=120), [profile], 'A title')
    assert 'K = 1 is plain back-propagation: where it fits, you need no local' in text.getvalue()


def test_files(profiles, tmp_path):
    save_profile(profiles, tmp_path / 'new', 'A title', dict(config='a.py', shape=SHAPE))
    found = json.loads((tmp_path / 'new/profile.json').read_text())
    assert found['config'] == 'a.py' and found['shape'] == list(SHAPE)
    local = found['variants'][0]
    assert local['peak_bytes'] == profiles[0].memory.peak_bytes == sum(local['at_peak'].values())
    assert local['peak_to_bp'] == local['peak_bytes'] / found['variants'][1]['peak_bytes']
    assert [module['peak_bytes'] for module in local['modules']] == [
        peak for _, peak in profiles[0].modules
    ]
    assert imread(tmp_path / 'new/memory.png').shape == (750, 1350, 3)


def test_a_batch_that_does_not_fit():
    with pytest.raises(LocalLearningError, match=r'BP: .* batch of 1×3×8×8 .* another shape'):
        profile_one(detector(), (1, 3, 8, 8))


def test_a_model_that_cannot_be_built():
    cfg = detector()
    cfg.model.neck.type = 'FBN'
    with pytest.raises(LocalLearningError, match="cannot be built: nothing is registered as 'FBN'"):
        profile_one(cfg)


@pytest.mark.parametrize('device', ['gpu', 'meta'])
def test_other_devices_are_refused(device):
    with pytest.raises(LocalLearningError, match=f"{device}.*give 'cpu' or 'cuda'"):
        check_device(device)


def test_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(LocalLearningError, match="no CUDA device here, profile with 'cpu'"):
        check_device('cuda')


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    check_device('cuda')
    check_device('cuda:1')
    with pytest.raises(LocalLearningError, match="'cuda:2': torch sees 2 CUDA devices"):
        check_device('cuda:2')


def test_on_cuda_the_allocator_has_the_word(monkeypatch):
    """With the CPU in CUDA's place, and an allocator that always holds 1 MiB more in a step."""
    from fba_mm.analysis import training_profile

    def measure(step, device, tracker):
        found = measure_step(step)
        return dataclasses.replace(found, peak_bytes=found.peak_bytes + MIB)

    clock = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            clock.append(f'record on {stream}')

        def synchronize(self):
            clock.append('wait')

        def elapsed_time(self, end):
            return 250.0  # Milliseconds.

    monkeypatch.setattr(training_profile, 'measure_step', measure)
    monkeypatch.setattr(training_profile, 'check_device', lambda device: None)
    monkeypatch.setattr(torch.cuda, 'synchronize', clock.append)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: f"{device}'s stream")
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(Variant, 'build', lambda variant, device: TrainingStep(variant.cfg))
    # A device that need not be the current one.
    bp = profile_one(detector(), device='cuda:1', rounds=1)
    assert bp.at_peak['allocator'] == MIB
    assert sum(bp.at_peak.values()) == bp.memory.peak_bytes
    recorded = "record on cuda:1's stream"
    # The first step, which says how long timing will take, and the round.
    assert clock == 2 * ['cuda:1', recorded, recorded, 'wait'] and bp.seconds == [0.25]
