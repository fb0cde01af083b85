#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Our casts, packs and collectives on GPUs against the driver's copy, CUB and plain NCCL, in turns in one run.

    bench/peers/device.py [--build build/cuda] [--turns 7]

device_bench and nccl_bench hold both sides: they run on the same memory, check their results first and take turns. A
ratio is the median over the turns of the programs; a turn whose copies before and after differ by more than 3 % is void.
No GPU has run this yet.
"""
import os
import subprocess

import turns

COPIES_DIFFER = 0.03
CASTS = (("f32_to_bf16", "fp32 -> bf16"), ("bf16_to_f32", "bf16 -> fp32"), ("f32_to_f16", "fp32 -> fp16"))
PACKS = (("pack_f32_to_bf16", "pack fp32 -> bf16"), ("unpack_bf16_to_f32", "unpack bf16 -> fp32"),
         ("pack_bf16", "pack bf16"), ("unpack_bf16", "unpack bf16"))


def rates(command):
    """GB/s by call of one run, and the lines of two words; no program or no device: the reason why not."""
    if not os.path.exists(command[0]):
        return None, f"there is no {command[0]}"
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode == 77:
        return None, run.stdout.strip().removeprefix("SKIPPED: ")
    if run.returncode != 0:
        raise SystemExit(f"{command[0]} ended with {run.returncode}")
    words = [line.split() for line in run.stdout.splitlines()]
    return {one[0]: int(one[2]) / float(one[1]) * 1e-9 if len(one) == 3 else int(one[1]) for one in words}, None


def casts(found, table):
    """One turn of the rows of device_bench; how many rows are void."""
    void = 0
    rows = [(name, text, 0.97, 1.0) for name, text in CASTS]
    rows += [("stochastic", "fp32 -> bf16, stochastic", 0.90, None)] + [(name, text, 0.92, None) for name, text in PACKS]
    for name, text, copy_target, cub_target in rows:
        first, last = found[f"{name}/copy"], found[f"{name}/copy_again"]
        if abs(first - last) > COPIES_DIFFER * min(first, last):
            void += 1
            continue
        table.add(f"{text} : a copy of as many bytes", found[f"{name}/ours"], (first + last) / 2, copy_target)
        if cub_target is not None:
            table.add(f"{text} : cub::DeviceTransform", found[f"{name}/ours"], found[f"{name}/cub"], cub_target)
    return void


def main():
    asked = turns.options(__doc__, "build/cuda").parse_args()
    on_one, on_all = (os.path.join(asked.build, "bin", name) for name in ("device_bench", "nccl_bench"))

    table, void = turns.Table(), 0
    for _ in range(asked.turns):
        found, why = rates([on_one])
        if why:
            return print(f"device.py: skipped, {why}")
        void += casts(found, table)
        host = found["launch/ours"]
    print(f"64 Mi elements and a layer of Llama-3-8B, {asked.turns} turns, {void} rows of a turn void")
    table.show("GB/s")
    print(f"host time of a launch: {48 / host * 1e-3:.1f} us (target 5)")

    for elements, name in ((64 << 20, "64 Mi"), (64 << 10, "64 Ki")):
        table = turns.Table()
        for _ in range(asked.turns):
            found, why = rates([on_all, str(elements), "21"])
            if why:
                return print(f"device.py: plain NCCL skipped, {why}")
            table.add(f"{name}, all-gather of bf16 : ncclAllGather", found["all_gather"], found["ncclAllGather"], None)
            ours = found["reduce_scatter"]
            table.add(f"{name}, reduce-scatter, bf16 in, fp32 out : ncclReduceScatter of bf16", ours,
                      found["ncclReduceScatter_bf16"], None)
            # as many elements a second: NCCL moves twice the bytes of each
            table.add(f"{name}, the same : ncclReduceScatter of fp32, bytes of bf16", ours,
                      found["ncclReduceScatter_fp32"] / 2, None)
        print(f"{found['ranks']} ranks of one process, a GPU each, {asked.turns} turns; bytes of all ranks over time")
        table.show("GB/s")


main()
