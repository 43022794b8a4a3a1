"""``MessageChannel``: whatever a batch is made of, from one process to the next."""

import io
import pickle
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist
from mmengine.dist import get_comm_device
from torch import Tensor

# Smaller tensors, boxes and labels say, travel together.
_ALONE_BYTES = 2**18


class _Pickler(pickle.Pickler):
    """Leaves out tensors, and notes them in order; aliases of one tensor count once."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: List[Tensor] = []
        self._places: Dict[tuple, int] = {}

    def persistent_id(self, obj: Any) -> Optional[int]:
        if not isinstance(obj, Tensor):
            return None
        view = (obj.data_ptr(), obj.shape, obj.stride(), obj.dtype, obj.device)
        # Those without elements have no address.
        place = self._places.get(view) if obj.numel() else None
        if place is None:
            place = self._places[view] = len(self.tensors)
            self.tensors.append(obj.detach())
        return place


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, tensors: List[Tensor]):
        super().__init__(io.BytesIO(content))
        self._tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        return self._tensors[pid]


def _innermost_channels(tensor: Tensor) -> bool:
    return (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def _bytes_of(tensor: Tensor) -> Tensor:
    if _innermost_channels(tensor):
        tensor = tensor.permute(0, 2, 3, 1)
    tensor = tensor.contiguous()
    # A single element counts as contiguous whatever its stride, which may be 0.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


class _Layout:
    """What a tensor looks like, for who receives its bytes alone.

    Args:
        tensor: The tensor.
    """

    def __init__(self, tensor: Tensor):
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype
        self.innermost_channels = _innermost_channels(tensor)
        self.on_cpu = tensor.device.type == 'cpu'
        self.nbytes = tensor.numel() * tensor.element_size()

    def tensor_of(self, content: Tensor, device: torch.device) -> Tensor:
        """The tensor.

        Args:
            content: Its bytes, aligned to its data type.
            device: Where it goes, unless it was on the CPU.
        """
        content = content.to('cpu' if self.on_cpu else device).view(self.dtype)
        if self.innermost_channels:
            n, c, h, w = self.shape
            return content.view(n, h, w, c).permute(0, 3, 1, 2)
        return content.view(self.shape)


class MessageChannel:
    """Sends nested objects with tensors in them from one process to another, in order.

    ``torch.distributed.send_object_list`` would copy tensors to the CPU and pickle them;
    ``torch.distributed.pipelining`` wants the same shapes in each step. Here the tensors go from
    device to device, and the rest, with their shapes, as bytes before them.

    Args:
        peer: The other process's rank.
        device: Where received tensors go.

    Example:
        >>> MessageChannel(1, device).send(dict(x=torch.ones(2)))     # in process 0
        >>> MessageChannel(0, device).receive()                       # in process 1
        {'x': tensor([1., 1.])}
    """

    def __init__(self, peer: int, device: torch.device):
        self._peer = peer
        self._device = device
        # What is on its way, with the memory that it is read from.
        self._under_way: List[Tuple[dist.Work, Tensor]] = []

    def send(self, message: Any) -> int:
        """Send a message off, once the one before it has arrived.

        Its tensors must stay as they are until the next call, or :meth:`flush`.

        Args:
            message: Anything that can be pickled.

        Returns:
            Bytes that are sent.
        """
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(message)
        layouts = [_Layout(tensor) for tensor in pickler.tensors]
        content = pickle.dumps((layouts, file.getvalue()), pickle.HIGHEST_PROTOCOL)
        device = get_comm_device()
        packed = [
            _bytes_of(tensor).to(device)
            for tensor, layout in zip(pickler.tensors, layouts)
            if layout.nbytes < _ALONE_BYTES
        ]
        parts = [
            torch.tensor([len(content)], device=device),
            torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device),
            torch.cat(packed) if packed else torch.empty(0, dtype=torch.uint8),
            *(
                _bytes_of(tensor).to(device)
                for tensor, layout in zip(pickler.tensors, layouts)
                if layout.nbytes >= _ALONE_BYTES
            ),
        ]
        self.flush()
        for part in parts:
            if part.numel():
                self._under_way.append((dist.isend(part, self._peer), part))
        return sum(part.nbytes for part in parts)

    def flush(self) -> None:
        """Wait until what was sent has arrived."""
        for work, _ in self._under_way:
            work.wait()
        self._under_way.clear()

    def receive(self) -> Any:
        """Wait for a message; aliases of a tensor are aliases again."""
        device = get_comm_device()
        length = self._get(torch.empty(1, dtype=torch.int64, device=device))
        content = self._get(torch.empty(int(length), dtype=torch.uint8, device=device))
        layouts, pickled = pickle.loads(content.cpu().numpy().tobytes())
        packed = self._get(
            torch.empty(
                sum(layout.nbytes for layout in layouts if layout.nbytes < _ALONE_BYTES),
                dtype=torch.uint8,
                device=device,
            )
        )
        tensors, offset = [], 0
        for layout in layouts:
            if layout.nbytes < _ALONE_BYTES:
                # A copy begins at an address that any data type can begin at.
                part = packed[offset : offset + layout.nbytes].clone()
                offset += layout.nbytes
            else:
                part = self._get(torch.empty(layout.nbytes, dtype=torch.uint8, device=device))
            tensors.append(layout.tensor_of(part, self._device))
        return _Unpickler(pickled, tensors).load()

    def _get(self, tensor: Tensor) -> Tensor:
        if tensor.numel():
            dist.recv(tensor, self._peer)
        return tensor
