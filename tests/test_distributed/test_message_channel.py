"""What a message channel gives back is what was given to it."""

import torch

from fba_mm.distributed.message_channel import MessageChannel

from ..several_processes import run_in_processes


def message() -> dict:
    generator = torch.Generator().manual_seed(0)
    large = torch.rand(2, 8, 128, 128, generator=generator)  # 1 MiB travels alone.
    small = torch.rand(2, 3, 4, 5, generator=generator)
    return dict(
        large=large,
        alias=large.detach(),
        part=large[1:],
        innermost=large.to(memory_format=torch.channels_last),
        transposed=small.transpose(1, 3),
        numbers=[
            small.bfloat16(),
            small > 0.5,
            torch.tensor(7),
            small.double(),
            torch.empty(0, 4),
            torch.tensor(3.0).expand(1),
        ],
        rest=('text', {3: None}),
    )


def passed_on(rank):
    channel = MessageChannel(1 - rank, torch.device('cpu'))
    if rank == 0:
        sizes = []
        for _ in range(3):
            given = message()
            sizes.append(channel.send(given))
        channel.flush()
        return sizes
    return [channel.receive() for _ in range(3)]


def test_messages():
    sizes, received = run_in_processes(2, passed_on)
    expected = message()
    for got in received:
        assert got.keys() == expected.keys() and got['rest'] == expected['rest']
        pairs = [
            *(
                (got[key], expected[key])
                for key in ('large', 'alias', 'part', 'innermost', 'transposed')
            ),
            *zip(got['numbers'], expected['numbers']),
        ]
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        assert got['innermost'].is_contiguous(memory_format=torch.channels_last)
    # The alias costs nothing: large, its half and its other layout are 2.5 MiB.
    assert all(2.5 <= size / 2**20 < 2.51 for size in sizes)


def aliases(rank):
    channel = MessageChannel(1 - rank, torch.device('cpu'))
    if rank == 0:
        x = torch.rand(2, 3)
        channel.send((x, x.detach()))
        channel.flush()
        return None
    x, y = channel.receive()
    x.zero_()
    return bool((y == 0).all())


def test_aliases_are_aliases_again():
    assert run_in_processes(2, aliases)[1]
