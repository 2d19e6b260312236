"""Properties of a compiled kernel, extracted from ptxas's log, the PTX and the machine code."""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_INSTRUCTION_BYTES = 16
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}  # else 4
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)((?:\.\w+)*)")
# LD and ST have generic addresses without a known space. In our kernels these are global.
_LOADS, _STORES, _LOCAL = ("LDG", "LD"), ("STG", "ST"), ("LDL", "STL")


@dataclass(frozen=True)
class Compiled:
    """The compiler's output for one or more kernels."""

    log: str  # of ptxas -v
    ptx: str
    cubin: bytes
    dynamic_shared: int = 0  # bytes requested at launch, in addition to what the kernels declare


@dataclass(frozen=True)
class Kernel:
    """A kernel in machine code."""

    symbol: str
    threads: int  # of a block, at most
    registers: int  # per thread
    shared: int  # bytes per block
    stack: int  # bytes per thread
    spill_stores: int  # bytes
    spill_loads: int
    loads: dict[str, int]  # from global memory: number of instructions by width in bytes
    stores: dict[str, int]
    local: int  # instructions that access local memory, which holds spilled registers


def disassembler() -> str | None:
    """The path of nvdisasm: from Triton's package, or else from the CUDA toolkit."""
    found = importlib.util.find_spec("triton")
    if found is not None and found.origin is not None:
        own = Path(found.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        if own.exists():
            return str(own)
    return shutil.which("nvdisasm")


def kernels(compiled: Sequence[Compiled]) -> list[Kernel]:
    """The kernels of some compilations for one architecture, in order."""
    described, codes, targets = [], [], set()
    for each in compiled:
        sections = dict(_sections(each.cubin))
        for symbol, target, properties in _entries(each.log):
            properties["shared"] += each.dynamic_shared
            described.append((symbol, _threads(each.ptx, symbol), properties))
            codes.append(sections[f".text.{symbol}"])
            targets.add(target)
    if not codes:
        return []
    (target,) = targets
    listings = _disassemble(codes, target)
    return [
        Kernel(symbol, threads, **properties, **_accesses(listing))
        for (symbol, threads, properties), listing in zip(described, listings, strict=True)
    ]


def _entries(log: str) -> Iterable[tuple[str, str, dict[str, int]]]:
    """Name, target and resources of each kernel in the output of ptxas -v."""
    parts = re.split(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", log)
    for symbol, target, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        # One line for the kernel and one for each function that it calls.
        line = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        memory = [map(int, found) for found in re.findall(line, text)]
        stack, stores, loads = (sum(column) for column in zip(*memory, strict=True))
        shared = re.search(r"(\d+) bytes smem", text)
        yield symbol, target, {
            "registers": int(re.search(r"Used (\d+) registers", text)[1]),
            "shared": int(shared[1]) if shared else 0,
            "stack": stack,
            "spill_stores": stores,
            "spill_loads": loads,
        }  # fmt: skip


def _threads(ptx: str, symbol: str) -> int:
    """Threads per block as declared by the kernel: the maximum, or the required number."""
    declared = rf"\.entry\s+{re.escape(symbol)}\s*\([^)]*\)\s*\.(?:maxntid|reqntid)\s+([\d, ]+)"
    found = re.search(declared, ptx)
    if not found:
        return 1024
    threads = 1
    for size in found[1].split(","):
        threads *= int(size)
    return threads


def _sections(elf: bytes) -> Iterable[tuple[str, bytes]]:
    """The sections of a 64-bit ELF file, by name."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    count, names = struct.unpack_from("<HH", elf, 0x3C)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + 64 * i) for i in range(count)]
    start_of_names = headers[names][4]
    for name, _, _, _, start, size in headers:
        at = start_of_names + name
        yield elf[at : elf.index(b"\0", at)].decode(), elf[start : start + size]


def _disassemble(codes: Sequence[bytes], target: str) -> list[list[tuple[str, str]]]:
    """Opcode and modifiers of each instruction, for each kernel.

    All kernels are disassembled in one run, because nvdisasm takes a third of a second to start.
    """
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        command = [disassembler(), "--binary", f"SM{target}", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    instructions = {int(at, 16): rest for at, *rest in _INSTRUCTION.findall(listing)}
    result, at = [], 0
    for code in codes:
        places = range(at, at + len(code), _INSTRUCTION_BYTES)
        result.append([instructions[place] for place in places])
        at += len(code)
    return result


def _accesses(listing: Iterable[tuple[str, str]]) -> dict[str, dict[str, int] | int]:
    loads, stores, local = Counter(), Counter(), 0
    for opcode, modifiers in listing:
        found = _WIDTHS.keys() & set(modifiers.split("."))
        width = str(_WIDTHS[found.pop()] if found else 4)
        loads[width] += opcode in _LOADS
        stores[width] += opcode in _STORES
        local += opcode in _LOCAL
    return {"loads": _widest_first(loads), "stores": _widest_first(stores), "local": local}


def _widest_first(counts: Counter[str]) -> dict[str, int]:
    return {width: n for width, n in sorted(counts.items(), key=lambda c: -int(c[0])) if n}
