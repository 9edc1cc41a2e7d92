"""A trace of allocations, played in PyTorch's CUDA caching allocator.

    python3 replay_torch.py TRACE...

One line of CSV a trace (columns: COLUMNS below).  The allocator is configured before CUDA starts,
so each configuration is a run of its own:

    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True python3 replay_torch.py TRACE...

A take is torch.empty of so many bytes, a give drops that tensor; nothing is computed, all is on one
stream.  Utilisation is the peak of requested bytes over the peak of reserved bytes, as bench_memory
has it for its own.  `created`, `unmapped` and `waits` are segments asked of the driver and given
back to it (with expandable segments: parts of them that were mapped and unmapped), and retries after
that.  `seconds` is the first pass, driver calls included, `again` a second one over the memory that
the first has left.  `survives` is the smallest cap (set_per_process_memory_fraction, in steps of
2 MiB, from fresh memory each) under which the trace runs to its end and that holds: PyTorch compares
it with what is asked for, and may map a little more.
"""
from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path

import torch

import traces

MIB = 1 << 20
STEP = 2 * MIB
COLUMNS = ("trace,allocator,peak_live,peak_mapped,utilisation,survives,created,unmapped,waits,"
           "seconds,again")


def play(events: list[traces.Event], device: torch.device) -> float:
    """Seconds that all takes and gives took; torch.OutOfMemoryError when the cap is too small."""
    tensors: dict[int, torch.Tensor] = {}
    begin = time.perf_counter()
    for op, id, size in events:
        if op == "take":
            tensors[id] = torch.empty(size, dtype=torch.uint8, device=device)
        else:
            del tensors[id]
    return time.perf_counter() - begin


def fresh() -> None:
    """Everything back to the driver, and peaks from nothing."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def survives(events: list[traces.Event], device: torch.device, least: int, most: int) -> int:
    """Between `least`, below which no cap can do, and `most`, which did."""
    total = torch.cuda.get_device_properties(device).total_memory
    low, high = least // STEP, -(-most // STEP)
    while low < high:
        middle = (low + high) // 2
        fresh()
        torch.cuda.set_per_process_memory_fraction(min((middle * STEP + 1) / total, 1.0))
        try:
            play(events, device)
            held = torch.cuda.memory_stats()["reserved_bytes.all.peak"]
        except torch.OutOfMemoryError:
            held = total
        if held <= middle * STEP:
            high = middle
        else:
            low = middle + 1
    torch.cuda.set_per_process_memory_fraction(1.0)
    fresh()
    return high * STEP


def measure(path: Path, allocator: str, device: torch.device) -> str:
    events = traces.read(path)
    fresh()
    counted = torch.cuda.memory_stats()
    seconds = play(events, device)
    stats = torch.cuda.memory_stats()
    calls = [stats[key] - counted[key]
             for key in ("num_device_alloc", "num_device_free", "num_alloc_retries")]
    again = play(events, device)
    live, reserved = stats["requested_bytes.all.peak"], stats["reserved_bytes.all.peak"]
    cap = survives(events, device, live, reserved)
    return (f"{path.name},{allocator},{live},{reserved},{live / reserved:.4f},{cap},"
            f"{calls[0]},{calls[1]},{calls[2]},{seconds:.6f},{again:.6f}")


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("use: replay_torch.py TRACE...")
    device = torch.device("cuda")
    torch.zeros(1, device=device)  # CUDA's own start is nobody's time
    config = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "default").replace(",", " ")
    allocator = f"PyTorch {torch.__version__} {config}"
    print(COLUMNS, flush=True)
    for name in sys.argv[1:]:
        print(measure(Path(name), allocator, device), flush=True)


if __name__ == "__main__":
    main()
