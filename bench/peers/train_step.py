#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A training step of train_llama against PyTorch's FSDP2 over gloo: same model, weights and batch, in turns in one run.

    bench/peers/train_step.py [--build build/host] [--turns 5] [--ranks 2 4]

23.9 M parameters (hidden 512, 8 layers), 8 sequences of 128 tokens, activations kept, one thread a rank, AdamW. The losses
of the first three steps must agree before anything is timed. A turn is one run of ours and as many steps of PyTorch's, each
counted by the median of its steps but the first. Memory is what a process of PyTorch's grew by at its peak, after PyTorch
was loaded, and what one process of ours took in all, divided by its ranks.
"""
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile

import turns

STEPS = 6
SETTINGS = {"fp32": ("false", {2: 1.5, 4: 2.0}), "bf16": ("true", {2: 2.0, 4: 3.0})}  # --bf16, and the ratios asked for


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer_questions():
    """The peer, one process a rank. "loss": of one step more; "peak": bytes; "seconds": the median of some steps more."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.nn import functional

    import llama

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks, me = dist.get_world_size(), dist.get_rank()
    before = peak_bytes()
    model = llama.Llama()
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = bf16 if os.environ["PEER_PRECISION"] == "bf16" else MixedPrecisionPolicy()
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=llama.LR)
    rows = llama.batch().chunk(ranks)[me]

    def step():
        loss = functional.cross_entropy(model(rows[:, :-1]).float().flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    for line in sys.stdin:
        if line.strip() == "loss":
            answer = step().detach().double() / ranks
            dist.all_reduce(answer)
        elif line.strip() == "peak":
            answer = torch.tensor(float(peak_bytes() - before))
            dist.all_reduce(answer, dist.ReduceOp.MAX)
        else:
            answer = torch.tensor(turns.median_seconds(STEPS - 1, step, dist.barrier))
        if me == 0:
            print(answer.item(), flush=True)
    dist.destroy_process_group()


def fsdp2(ranks, precision):
    """The peer's processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1",
              "PEER_PRECISION": precision}
    return turns.Peer([sys.executable, os.path.abspath(__file__), "--peer"], [{**shared, "RANK": str(r)} for r in range(ranks)])


def train(program, folder, ranks, precision):
    """One run of ours: its report, the median seconds of a step, and the processor seconds of the whole run."""
    import llama

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [program, "--model", folder, "--config", os.path.join(folder, "fsdp2.yaml"), "--world", str(ranks), "--json",
         "--tokens", os.path.join(folder, "tokens.safetensors"), "--steps", str(STEPS), "--lr", str(llama.LR),
         "--bf16", SETTINGS[precision][0]], check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(run.stdout)
    seconds = statistics.median(one["seconds"] for one in report["steps"][1:])
    return report, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(program, folder, precision, ranks, count):
    """`count` turns of one setting, and its table."""
    peer, table = fsdp2(ranks, precision), turns.Table()
    report, _, _ = train(program, folder, ranks, precision)
    for number, one in enumerate(report["steps"][:3]):
        loss = peer.seconds("loss")
        if abs(loss - one["loss"]) > (1e-4 if precision == "fp32" else 2e-2):
            raise SystemExit(f"step {number + 1}, {precision}, {ranks} ranks: the loss is {one['loss']} here and {loss} there")
    for _ in range(count):
        alone, whole, alone_processor = train(program, folder, 1, precision)
        report, step, processor = train(program, folder, ranks, precision)
        theirs = peer.seconds("seconds")
        peak = report["peak"]["resident_bytes"] / ranks
        table.add(f"steps a second, {precision}, {ranks} ranks : FSDP2 over gloo", 1 / step, 1 / theirs, SETTINGS[precision][1][ranks])
        table.add(f"steps a second, {precision} : 1 rank on as many cores, at best", 1 / step, min(2, ranks) / whole, 1 / 1.15)
        table.add(f"runs a second of processor time, {precision} : 1 rank", 1 / processor, 1 / alone_processor, 1 / 1.15)
        table.add(f"ranks in a GiB, {precision} : FSDP2", (1 << 30) / peak, (1 << 30) / peer.seconds("peak"), 1.0)
    peer.close()
    table.show("per unit")


def main():
    options = turns.options(__doc__)
    options.set_defaults(turns=5)
    options.add_argument("--ranks", type=int, choices=(2, 4), nargs="+", default=[2, 4], help="worlds (default 2 4)")
    options.add_argument("--precision", choices=tuple(SETTINGS), nargs="+", default=list(SETTINGS), help="(default: both)")
    asked = options.parse_args()
    try:
        import torch
    except ImportError:
        return print("train_step.py: skipped, this Python has no PyTorch")
    if asked.peer:
        return answer_questions()
    program = os.path.join(asked.build, "bin", "train_llama")
    if not os.path.exists(program):
        return print(f"train_step.py: skipped, there is no {program}")
    import llama

    print(f"PyTorch {torch.__version__}, {asked.turns} turns of {STEPS - 1} steps, 2 cores assumed")
    with tempfile.TemporaryDirectory() as folder:
        llama.write_model(folder)
        for precision in asked.precision:
            for ranks in asked.ranks:
                measure(program, folder, precision, ranks, asked.turns)


main()
