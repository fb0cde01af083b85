#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Our casts, packs and unpacks against PyTorch's on two threads, in turns in one run; GB/s read plus written.

    bench/peers/casts.py [--build build/host] [--turns 7]

PyTorch runs twice: as installed, and with huge pages on (THP_MEM_ALLOC_ENABLE=1). Each turn of each side is a median of
7 calls, each side checks its results first, and a ratio is the median over the turns.
"""
import os
import sys

import turns

N = 64 << 20  # elements of a cast
LAYER = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (1408, 4096), (1408, 4096), (4096, 1408), (4096,), (4096,)]
THREADS = 2


def answer_questions():
    """The peer: names of measurements on standard input, seconds on standard output."""
    import torch

    torch.set_num_threads(THREADS)
    wide, narrow = torch.randn(N), torch.empty(N, dtype=torch.bfloat16)
    tensors = [torch.randn(shape) for shape in LAYER]
    narrow_tensors = [t.bfloat16().flatten() for t in tensors]
    sizes = [t.numel() for t in tensors]
    flat = torch.empty(sum(sizes), dtype=torch.bfloat16)
    views = [view.view(t.shape) for view, t in zip(flat.split(sizes), tensors)]
    chunks = 8  # ranks that the layer is cut for, as FSDP2 copies gradients
    chunked = torch.empty(chunks, sum(sizes) // chunks, dtype=torch.bfloat16)

    calls = {
        "cast": lambda: narrow.copy_(wide),
        "pack": lambda: torch._foreach_copy_(views, tensors),
        "chunk_cat": lambda: torch._chunk_cat(tensors, 0, chunks, out=chunked),
        "unpack_wide": lambda: torch._foreach_copy_(tensors, views),
        "unpack": lambda: torch.split_with_sizes_copy(flat, sizes, out=narrow_tensors),
    }
    calls["cast"]()
    assert torch.equal(narrow, wide.to(torch.bfloat16))
    calls["pack"]()
    assert all(torch.equal(view, t.bfloat16()) for view, t in zip(views, tensors))
    calls["chunk_cat"]()
    assert all(torch.equal(row, torch.cat([t.chunk(chunks)[k].flatten() for t in tensors]).bfloat16())
               for k, row in enumerate(chunked))
    calls["unpack"]()
    assert all(torch.equal(t, view.flatten()) for view, t in zip(views, narrow_tensors))
    calls["unpack_wide"]()
    assert all(torch.equal(t, view.float()) for view, t in zip(views, tensors))
    for line in sys.stdin:
        call = calls[line.strip()]
        call()
        print(turns.median_seconds(7, call), flush=True)


def main():
    asked = turns.options(__doc__).parse_args()
    try:
        import torch
    except ImportError:
        return print("casts.py: skipped, this Python has no PyTorch")
    if asked.peer:
        return answer_questions()
    program = os.path.join(asked.build, "bin", "cast_bench")
    if not os.path.exists(program):
        return print(f"casts.py: skipped, there is no {program}")

    command = [sys.executable, os.path.abspath(__file__), "--peer"]
    installed = turns.Peer(command)
    large = turns.Peer(command, [{"THP_MEM_ALLOC_ENABLE": "1"}])
    elements = sum(x * (y[0] if y else 1) for x, *y in LAYER)
    bytes_of = {"cast": 6 * N, "pack": 6 * elements, "chunk_cat": 6 * elements, "unpack_wide": 6 * elements, "unpack": 4 * elements}
    names = {"cast": "cast_rate<bf16, float>", "pack": "pack_rate<bf16, float, false>",
             "chunk_cat": "pack_rate<bf16, float, false>",
             "unpack_wide": "pack_rate<bf16, float, true>", "unpack": "pack_rate<bf16, bf16, true>"}
    table = turns.Table()
    for _ in range(asked.turns):
        pattern = "^(" + "|".join(sorted(set(names.values()))) + f")/{THREADS}/"
        ours = turns.benchmarks(program, pattern)
        theirs = {(peer, what): count / peer.seconds(what) * 1e-9
                  for what, count in bytes_of.items() for peer in (installed, large)}

        def row(name, what, pages, peer, target):
            table.add(name, ours[f"{names[what]}/{THREADS}/{pages}"]["GB/s"], theirs[peer, what], target)

        for pages, copy, libc in ((1, 0.80, 1.3), (0, 0.70, 1.0)):
            cast, on = ours[f"{names['cast']}/{THREADS}/{pages}"], ("plain memory", "library buffers")[pages]
            table.add(f"fp32 -> bf16, {on} : non-temporal copy", cast["GB/s"], cast["copy_GB/s"], copy)
            table.add(f"fp32 -> bf16, {on} : memcpy", cast["GB/s"], cast["memcpy_GB/s"], libc)
        row("fp32 -> bf16, library buffers : PyTorch as installed", "cast", 1, installed, 1.9)
        row("fp32 -> bf16, library buffers : PyTorch, huge pages", "cast", 1, large, 1.25)
        row("fp32 -> bf16, plain memory : PyTorch as installed", "cast", 0, installed, 1.25)
        for what, text in (("pack", "pack fp32 -> bf16, {} : _foreach_copy_"),
                           ("unpack", "unpack bf16, {} : split_with_sizes_copy"),
                           ("unpack_wide", "unpack bf16 -> fp32, {} : _foreach_copy_")):
            row(text.format("library buffers"), what, 1, installed, 1.5)
            row(text.format("library buffers") + ", huge pages", what, 1, large, None)
            row(text.format("plain memory"), what, 0, installed, None)
        row("pack fp32 -> bf16, library buffers : _chunk_cat", "chunk_cat", 1, installed, None)
        row("pack fp32 -> bf16, library buffers : _chunk_cat, huge pages", "chunk_cat", 1, large, None)
    installed.close()
    large.close()
    print(f"PyTorch {torch.__version__}, {THREADS} threads, {asked.turns} turns")
    table.show("GB/s")


main()
