"""Compile every Triton kernel for an H100; needs no GPU. `python compile_triton_kernels.py NUM_TOKENS SLOTS`

The interpreter accepts what the compiler does not; this tells them apart where no GPU is at hand.
"""

import sys
import time

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from transpooler.model.ops.soft_topk import triton_backend, triton_group_sum
from transpooler.model.ops.soft_topk.tournament import num_rounds

TARGET = GPUTarget("cuda", 90, 32)
FLOATS = {"log2_base", "log_base"}
BOOLS = {"mask_ptr", "filled_ptr"}
LONGS = {"k_ptr", "groups_ptr", "positions_ptr"}
SHORTS = {"ints_ptr", "members_ptr", "starts_ptr", "ends_ptr"}
EMBEDDINGS = {"embeddings_ptr", "out_ptr", "grad_embeddings_ptr"}


def argument_type(name: str, of_embeddings: bool) -> str:
    """Triton's name of a kernel argument's type."""
    if name in FLOATS or not name.endswith("_ptr"):
        return "fp32" if name in FLOATS else "i32"
    if name in EMBEDDINGS or (of_embeddings and name == "grad_ptr"):
        return "*bf16"
    return "*i1" if name in BOOLS else "*i64" if name in LONGS else "*i32" if name in SHORTS else "*fp32"


def compile_kernel(kernel, constants: dict, num_warps: int = 4) -> None:
    """Compile, and print what it took."""
    names, started = kernel.arg_names, time.perf_counter()
    of_embeddings = "embeddings_ptr" in names
    signature = {n: "constexpr" if n in constants else argument_type(n, of_embeddings) for n in names}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()})
    binary = triton.compile(source, target=TARGET, options={"num_warps": num_warps})
    size_kib, took_s = len(binary.asm["cubin"]) // 1024, time.perf_counter() - started
    print(f"sm_90 {kernel.__name__}: {size_kib} KiB, {binary.metadata.shared} B shared memory, {took_s:.1f} s")


def main() -> None:
    """All five, at the size asked for."""
    num_tokens, slots = map(int, sys.argv[1:])
    rounds = num_rounds(num_tokens, slots)
    blocks = triton_backend.level_blocks(num_tokens, slots, rounds)
    levels = {"ROUNDS": rounds, "BLOCKS": blocks}
    num_warps = triton_backend.num_warps(blocks[0])
    compile_kernel(triton_backend._tournament_kernel, levels, num_warps)
    compile_kernel(triton_backend._tournament_backward_kernel, levels, num_warps)
    compile_kernel(triton_group_sum._members_kernel, {"BLOCK": blocks[0]}, num_warps)
    wide = {"BLOCK_D": triton_group_sum.BLOCK_D}
    compile_kernel(triton_group_sum._group_sum_kernel, {"BLOCK": blocks[0], "MEMBERS": 8, **wide})
    compile_kernel(triton_group_sum._group_sum_backward_kernel, {"TOKENS": 4, **wide})


if __name__ == "__main__":
    main()
