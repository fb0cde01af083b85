#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Our collectives on one node against Open MPI's own and, where PyTorch is, gloo's, in turns in one run.

    bench/peers/collectives.py [--build build/host] [--turns 7] [--ranks 2 4]

All sides use memory on the same kind of pages but gloo, which uses PyTorch's. Each turn of each side is a median of
several calls, each side checks its results first, and a ratio is the median over the turns.
"""
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time

import turns

LARGE, SMALL = 16 << 20, 64 << 10  # elements of a unit
AS_ROOT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def answer_questions():
    """The peer, one process a rank: names of collectives on standard input, seconds of the slowest rank as the answer."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks, me = dist.get_world_size(), dist.get_rank()
    shard = torch.full((LARGE // ranks,), float(me), dtype=torch.bfloat16)
    full = torch.empty(LARGE, dtype=torch.bfloat16)
    narrow, narrow_sum = torch.ones(LARGE, dtype=torch.bfloat16), torch.empty(LARGE // ranks, dtype=torch.bfloat16)
    wide, wide_sum = torch.ones(LARGE), torch.empty(LARGE // ranks)
    calls = {
        "all_gather": lambda: dist.all_gather_into_tensor(full, shard),
        "reduce_scatter_bf16": lambda: dist.reduce_scatter_tensor(narrow_sum, narrow),
        "reduce_scatter_fp32": lambda: dist.reduce_scatter_tensor(wide_sum, wide),
    }
    for call in calls.values():
        call()
    assert all((part == rank).all() for rank, part in enumerate(full.split(LARGE // ranks)))
    assert (narrow_sum == ranks).all() and (wide_sum == ranks).all()
    for line in sys.stdin:
        call, seconds = calls[line.strip()], []
        for _ in range(3):
            dist.barrier()
            start = time.perf_counter()
            call()
            slowest = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            seconds.append(slowest.item())
        print(statistics.median(seconds), flush=True)
    dist.destroy_process_group()


def gloo(ranks):
    """The peer's processes, or nothing where this Python has no PyTorch."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    return turns.Peer([sys.executable, os.path.abspath(__file__), "--peer"], [{**shared, "RANK": str(r)} for r in range(ranks)])


def mpi(program, launcher, ranks, elements, calls):
    """Seconds by call of one run of mpi_bench."""
    command = [launcher, "--oversubscribe", "-n", str(ranks), program, str(elements), str(calls)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=AS_ROOT, text=True)
    return {name: float(seconds) for name, seconds in (line.split() for line in run.stdout.splitlines())}


def main():
    options = turns.options(__doc__)
    options.add_argument("--ranks", type=int, choices=(2, 4), nargs="+", default=[2, 4], help="worlds (default 2 4)")
    asked = options.parse_args()
    if asked.peer:
        return answer_questions()
    threads, processes, casts = (os.path.join(asked.build, "bin", name)
                                 for name in ("collectives_bench", "mpi_bench", "cast_bench"))
    for needed in (threads, processes, casts):
        if not os.path.exists(needed):
            return print(f"collectives.py: skipped, there is no {needed}")
    launcher = shutil.which("mpirun.openmpi") or shutil.which("mpirun")
    version = launcher and subprocess.run([launcher, "--version"], stdout=subprocess.PIPE, env=AS_ROOT, text=True).stdout
    if not version or ("Open MPI" not in version and "OpenRTE" not in version):
        return print("collectives.py: skipped, Open MPI's mpirun was not found")

    for ranks in asked.ranks:
        measure(ranks, asked.turns, threads, processes, casts, launcher)


def measure(ranks, count, threads, processes, casts, launcher):
    """One world: `count` turns of all sides, and its table."""
    own, one, sums = "gather_rate<bf16, false>", "gather_rate<bf16, true>", "reduce_rate<bf16>"
    calls = {"all-gather, own buffers": own, "all-gather, a shared buffer": one, "reduce-scatter": sums}
    peer = gloo(ranks)
    table, bare = turns.Table(), turns.Table()
    for _ in range(count):
        ours = turns.benchmarks(threads, f"^({own}|{one}|{sums})/{ranks}/(16384|64)/")
        seconds = {(text, kib): ours[f"{row}/{ranks}/{kib}"]["real_time"] * 1e-3
                   for text, row in calls.items() for kib in (LARGE >> 10, SMALL >> 10)}
        large = mpi(processes, launcher, ranks, LARGE, 5)
        small = mpi(processes, launcher, ranks, SMALL, 101)

        def row(text, mine, theirs, target):
            table.add(text, 1 / mine, 1 / theirs, target)

        def of_threads(what, kib=LARGE >> 10):
            return seconds[what, kib]

        gather, scatter = large["MPI_Allgather"], large["MPI_Reduce_scatter_block"]
        row("16 Mi, threads, all-gather, own buffers : MPI_Allgather", of_threads("all-gather, own buffers"), gather, 1)
        row("16 Mi, threads, all-gather, a shared buffer : MPI_Allgather", of_threads("all-gather, a shared buffer"), gather, 3)
        row("16 Mi, threads, reduce-scatter : MPI's, fp32", of_threads("reduce-scatter"), scatter, 5)
        row("16 Mi, processes, all-gather : MPI_Allgather", large["all_gather"], gather, 0.95)
        row("16 Mi, processes, reduce-scatter : MPI's, fp32", large["reduce_scatter"], scatter, 3)
        row("16 Mi, processes, all-to-all : MPI_Alltoall", large["all_to_all_v"], large["MPI_Alltoall"], None)
        if peer is not None:
            row("16 Mi, threads, all-gather, own buffers : gloo", of_threads("all-gather, own buffers"),
                peer.seconds("all_gather"), None)
            row("16 Mi, threads, reduce-scatter : gloo, bf16", of_threads("reduce-scatter"),
                peer.seconds("reduce_scatter_bf16"), 10)
            row("16 Mi, threads, reduce-scatter : gloo, fp32", of_threads("reduce-scatter"),
                peer.seconds("reduce_scatter_fp32"), 10)
        kib = SMALL >> 10
        row("64 Ki, threads, all-gather, own buffers : MPI_Allgather", of_threads("all-gather, own buffers", kib),
            small["MPI_Allgather"], 1)
        row("64 Ki, threads, reduce-scatter : MPI's, fp32", of_threads("reduce-scatter", kib),
            small["MPI_Reduce_scatter_block"], 1)
        row("64 Ki, processes, all-gather : MPI_Allgather", small["all_gather"], small["MPI_Allgather"], 1)
        row("64 Ki, processes, reduce-scatter : MPI's, fp32", small["reduce_scatter"], small["MPI_Reduce_scatter_block"], 1)
        if ranks == 2:  # as many threads as the machine has cores, so that the kernel alone compares
            collective = turns.benchmarks(threads, f"^(gather_rate<float, true>|{sums})/2/65536/")
            kernel = turns.benchmarks(casts, "^(cast_rate<bf16, float>|sum_rate<bf16, 2>)/2/1/")
            bare.add("64 Mi, 2 threads, all-gather of fp32 as bf16, a shared buffer : cast",
                     collective["gather_rate<float, true>/2/65536"]["GB/s"], kernel["cast_rate<bf16, float>/2/1"]["GB/s"], 0.8)
            bare.add("64 Mi, 2 threads, reduce-scatter bf16 -> fp32 : sum",
                     collective[f"{sums}/2/65536"]["GB/s"], kernel["sum_rate<bf16, 2>/2/1"]["GB/s"], 0.8)
    if peer is not None:
        peer.close()
    print(f"{ranks} ranks, {count} turns" + ("" if peer else "; gloo skipped, this Python has no PyTorch"))
    table.show("calls/s")
    if bare.rows:
        bare.show("GB/s")


main()
