"""The number of warps of a kernel that a multiprocessor can hold at once."""

from __future__ import annotations

from dataclasses import dataclass

# The calculation and its granularities follow NVIDIA's cuda_occupancy.h (a header of the CUDA
# toolkit, and formerly a spreadsheet), for compute capability 8.0 and later. The sizes of the
# multiprocessors are from the table "Technical Specifications per Compute Capability" of the CUDA
# C++ Programming Guide.
WARP = 32
_REGISTERS = 65536  # per multiprocessor, and the maximum per block
_PARTITIONS = 4  # per multiprocessor; each has a quarter of the registers, for its own warps
_REGISTERS_AT_A_TIME = 256  # allocation unit per warp
_MOST_REGISTERS = 255  # per thread
_SHARED_AT_A_TIME = 128  # allocation unit per block, in bytes
_RESERVED = 1024  # bytes of shared memory per block that are reserved for the system
_MOST_THREADS = 1024  # per block


@dataclass(frozen=True)
class Multiprocessor:
    warps: int
    blocks: int
    shared: int  # bytes


# What setup.py compiles for by default.
ARCHITECTURES = ("80", "90", "100")
MULTIPROCESSORS = {  # by architecture: "90" is sm_90
    "80": Multiprocessor(64, 32, 164 * 1024),
    "86": Multiprocessor(48, 16, 100 * 1024),
    "89": Multiprocessor(48, 24, 100 * 1024),
    "90": Multiprocessor(64, 32, 228 * 1024),
    "100": Multiprocessor(64, 32, 228 * 1024),
    "120": Multiprocessor(48, 24, 100 * 1024),
}


def blocks_at_once(architecture: str, threads: int, registers: int, shared: int) -> int:
    """The number of blocks per multiprocessor; 0 if the kernel cannot be launched.

    Args:
        architecture: a key of ``MULTIPROCESSORS``.
        threads: per block.
        registers: per thread.
        shared: bytes per block.
    """
    of = MULTIPROCESSORS[architecture]
    warps = -(-threads // WARP)
    per_warp = _round_up(registers * WARP, _REGISTERS_AT_A_TIME)
    per_block = _round_up(shared + _RESERVED, _SHARED_AT_A_TIME)
    # The hardware's launch check assumes that the warps of a block are spread over all partitions.
    too_many = per_warp * _round_up(warps, _PARTITIONS) > _REGISTERS
    if threads > _MOST_THREADS or registers > _MOST_REGISTERS or too_many:
        return 0
    limits = [of.blocks, of.warps // warps, of.shared // per_block]
    if per_warp:
        limits.append(_REGISTERS // _PARTITIONS // per_warp * _PARTITIONS // warps)
    return min(limits)


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
