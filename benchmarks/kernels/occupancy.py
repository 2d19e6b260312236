"""How many warps of a kernel a multiprocessor can hold at once."""

from __future__ import annotations

from dataclasses import dataclass

# The calculation and its granularities are those of NVIDIA's cuda_occupancy.h (a header of the CUDA
# toolkit, and the former spreadsheet), for compute capability 8.0 and later. The multiprocessors'
# sizes are from the table "Technical Specifications per Compute Capability" of the CUDA C++
# Programming Guide.
WARP = 32
_REGISTERS = 65536  # of a multiprocessor, and the most that a block may take
_PARTITIONS = 4  # a multiprocessor's; each has a quarter of the registers, for its own warps
_REGISTERS_AT_A_TIME = 256  # given to a warp
_MOST_REGISTERS = 255  # of a thread
_SHARED_AT_A_TIME = 128  # bytes, given to a block
_RESERVED = 1024  # bytes of shared memory that the system takes for each block
_MOST_THREADS = 1024  # of a block


@dataclass(frozen=True)
class Multiprocessor:
    warps: int
    blocks: int
    shared: int  # bytes


# What setup.py compiles for, unless it is told otherwise.
ARCHITECTURES = ("80", "90", "100")
MULTIPROCESSORS = {  # by architecture: "90" is that of sm_90
    "80": Multiprocessor(64, 32, 164 * 1024),
    "86": Multiprocessor(48, 16, 100 * 1024),
    "89": Multiprocessor(48, 24, 100 * 1024),
    "90": Multiprocessor(64, 32, 228 * 1024),
    "100": Multiprocessor(64, 32, 228 * 1024),
    "120": Multiprocessor(48, 24, 100 * 1024),
}


def blocks_at_once(architecture: str, threads: int, registers: int, shared: int) -> int:
    """The blocks that one multiprocessor holds; 0 where the kernel cannot be launched.

    Args:
        architecture: a key of ``MULTIPROCESSORS``.
        threads: of a block.
        registers: of a thread.
        shared: bytes of a block.
    """
    of = MULTIPROCESSORS[architecture]
    warps = -(-threads // WARP)
    per_warp = _round_up(registers * WARP, _REGISTERS_AT_A_TIME)
    per_block = _round_up(shared + _RESERVED, _SHARED_AT_A_TIME)
    # The hardware's check of a launch takes a block's warps to be spread over all partitions.
    too_many = per_warp * _round_up(warps, _PARTITIONS) > _REGISTERS
    if threads > _MOST_THREADS or registers > _MOST_REGISTERS or too_many:
        return 0
    limits = [of.blocks, of.warps // warps, of.shared // per_block]
    if per_warp:
        limits.append(_REGISTERS // _PARTITIONS // per_warp * _PARTITIONS // warps)
    return min(limits)


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
