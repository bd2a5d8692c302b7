"""The sum of one number from each program, in a fixed order, inside their own launch.

Every program stores its number and draws a ticket; the one with the last ticket adds them all, so
the result does not depend on which program came when, as it would with atomic sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def add_in_order(value, partials, tickets, out, num_programs, BLOCK: tl.constexpr):
    """Adds `value` of programs 0 to num_programs - 1 into `out`; `tickets` is 0 before and after.

    The barrier and the ticket's release make each number visible to the last program; it reads
    them past its own L1 cache.
    """
    tl.store(partials + tl.program_id(0), value)
    tl.debug_barrier()
    if tl.atomic_add(tickets, 1, sem="acq_rel") == num_programs - 1:
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, num_programs, BLOCK):
            index = start + tl.arange(0, BLOCK)
            total += tl.load(
                partials + index, mask=index < num_programs, other=0.0, cache_modifier=".cg"
            )
        tl.store(out, tl.sum(total, 0))
        tl.store(tickets, 0)


_SPARE_AT_ONCE = 256
_spare: dict[torch.device, list[Tensor]] = {}
_of_stream: dict[tuple[torch.device, int], Tensor] = {}


def ticket_counter(device: torch.device) -> Tensor:
    """(1,) int32 zero that no other launch in flight draws from.

    Launches of one stream follow each other and share one. A launch that a CUDA graph captures gets
    one of its own, since the graph may be replayed on any stream; it is made beforehand, or inside
    the graph if the first launch of all is captured.
    """
    if device.type != "cuda":
        return torch.zeros(1, dtype=torch.int32, device=device)
    spare = _spare.setdefault(device, [])
    if torch.cuda.is_current_stream_capturing():
        return spare.pop() if spare else torch.zeros(1, dtype=torch.int32, device=device)
    if not spare:
        spare += torch.zeros(_SPARE_AT_ONCE, 1, dtype=torch.int32, device=device).unbind()
        torch.cuda.current_stream(device).synchronize()  # other streams will use them
    stream = torch.cuda.current_stream(device).cuda_stream
    if (device, stream) not in _of_stream:
        _of_stream[device, stream] = spare.pop()
    return _of_stream[device, stream]
