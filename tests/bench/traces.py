"""Traces of allocations: the format of replay.h, and how PyTorch's memory history becomes one.

A trace is a list of (op, id, bytes): "take" and later "give"; an id is free again once it was given
back.  What was still there when recording ended is given back at the end.  Needs nothing but Python.
"""
from __future__ import annotations

import gzip
import heapq
import re
from pathlib import Path

Event = tuple[str, int, int]
HEADING = "op,id,bytes"
FORM = re.compile(r"(take|give),([0-9]{1,18}),([0-9]{1,18})")


def write(path: Path, events: list[Event], comments: list[str]) -> None:
    """Writes `events`, packed when the name ends with .gz: the same events, the same file."""
    lines = [f"# {comment}" for comment in comments] + [HEADING]
    lines += [f"{op},{id},{size}" for op, id, size in events]
    text = ("\n".join(lines) + "\n").encode()
    if path.suffix == ".gz":
        text = gzip.compress(text, compresslevel=9, mtime=0)
    path.write_bytes(text)


def read(path: Path) -> list[Event]:
    """The events of a trace; ValueError with file and line for what is none."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if not line.startswith("#")]
    if not lines or lines[0][1] != HEADING:
        raise ValueError(f"{path}: a trace begins with {HEADING}")
    events: list[Event] = []
    sizes: dict[int, int] = {}
    for number, line in lines[1:]:
        form = FORM.fullmatch(line)
        op, id, size = (form[1], int(form[2]), int(form[3])) if form else ("", 0, 0)
        if op == "take" and size > 0 and id not in sizes:
            sizes[id] = size
        elif op != "give" or sizes.pop(id, 0) != size:
            raise ValueError(f"{path}:{number}: '{line[:40]}' makes no sense in a trace")
        events.append((op, id, size))
    return events


def held(segments: list[dict]) -> list[tuple[int, int]]:
    """(address, requested bytes) of what a snapshot shows as taken."""
    found = []
    for segment in segments:
        at = segment["address"]
        for block in segment["blocks"]:
            if block["state"] != "inactive":
                found.append((block.get("address", at), block.get("requested_size", block["size"])))
            at += block["size"]
    return found


def from_history(history: list[dict], before: list[tuple[int, int]] = ()) -> list[Event]:
    """Events of one device's history, in its order; bytes as they were asked for.

    `before`: what was taken when recording began, and is to be in the trace.  All else that was
    taken earlier is passed over when it is given back.  Memory is given back where the allocator
    may use it again (free_completed), which for memory that two streams used is later than where
    the program let go of it.
    """
    events: list[Event] = []
    alive: dict[int, tuple[int, int]] = {}  # by address: id, bytes
    vacant: list[int] = []                  # ids; the lowest comes first, so that steps look alike

    def take(address: int, size: int) -> None:
        if address in alive:
            raise ValueError(f"history: {address:#x} is taken twice; it has lost entries")
        id = heapq.heappop(vacant) if vacant else len(alive)
        alive[address] = id, size
        events.append(("take", id, size))

    def give(address: int) -> None:
        id, size = alive.pop(address)
        heapq.heappush(vacant, id)
        events.append(("give", id, size))

    for address, size in before:
        take(address, size)
    for entry in history:
        if entry["action"] == "alloc" and entry["size"] > 0:
            take(entry["addr"], entry["size"])
        elif entry["action"] == "free_completed" and entry["addr"] in alive:
            give(entry["addr"])
    for address in list(alive):
        give(address)
    return events


def peak_live(events: list[Event]) -> int:
    """Highest sum of bytes that are there at one time."""
    live = most = 0
    for op, _, size in events:
        live += size if op == "take" else -size
        most = max(most, live)
    return most
