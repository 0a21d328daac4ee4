#!/usr/bin/env python3
"""Times the student in PyTorch and sets it beside what "denoised bench --backend cuda --json" measured.

    compare.py WEIGHTS.safetensors BENCH.json [--seconds S]

Both are to be run on one card, one after the other, with nothing else on it. The network is
the one of models/net/student.go with the same weights, in fp16: plain (eager), with channels last
in memory, as a CUDA graph, and compiled (max-autotune). Times are those of the device between
two events around many runs, inputs and outputs staying on the card, which is what "device"
means in BENCH.json; they hold pixel-unshuffle, noise map, network, pixel-shuffle and
subtraction. Prints a table and, as its last line, JSON.
"""
import argparse
import json
import struct
import sys

import torch
import torch.nn.functional as F


def read_safetensors(path):
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
        body = f.read()
    tensors = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        if t["dtype"] != "F32":
            sys.exit(f"{path}: {name} is {t['dtype']}, want F32")
        a, b = t["data_offsets"]
        tensors[name] = torch.frombuffer(bytearray(body[a:b]), dtype=torch.float32).reshape(t["shape"])
    return tensors


class Student(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.blocks = 0
        while f"blocks.{self.blocks}.a.weight" in weights:
            self.blocks += 1
        self.constants = weights["head.weight"].shape[1] - 5
        for name, t in weights.items():
            self.register_buffer(name.replace(".", "_"), t)

    def conv(self, x, name):
        return F.conv2d(x, getattr(self, name + "_weight"), getattr(self, name + "_bias"), padding=1)

    def forward(self, y, sigma, rho):
        x = [F.pixel_unshuffle(y, 2), 10 * F.avg_pool2d(sigma, 2)]
        if self.constants:
            x.append(rho[:, :, None, None].expand(-1, -1, y.shape[2] // 2, y.shape[3] // 2))
        h = self.conv(torch.cat(x, 1), "head")
        for i in range(self.blocks):
            h = h + self.conv(F.relu(self.conv(h, f"blocks_{i}_a")), f"blocks_{i}_b")
        return y - F.pixel_shuffle(self.conv(h, "tail"), 2)


def milliseconds(run, seconds):
    for _ in range(5):
        run()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(10):
        run()
    end.record()
    torch.cuda.synchronize()
    n = max(10, int(seconds * 1e3 / (start.elapsed_time(end) / 10)))
    times = []
    for _ in range(5):
        start.record()
        for _ in range(n):
            run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / n)
    return sorted(times)[2]


def graphed(f, *args):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            f(*args)
    torch.cuda.current_stream().wait_stream(side)
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        f(*args)
    return g.replay


def main():
    p = argparse.ArgumentParser()
    p.add_argument("weights")
    p.add_argument("bench")
    p.add_argument("--seconds", type=float, default=0.2, help="of each measurement")
    a = p.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.set_grad_enabled(False)
    weights = read_safetensors(a.weights)
    with open(a.bench) as f:
        ours = {(r["size"], r["batch"]): r["device_ms_per_slice"] for r in json.load(f)["results"] if r["net"] == "student"}

    rows = []
    for size, batch in sorted(ours):
        y = torch.rand(batch, 1, size, size, device="cuda", dtype=torch.float16)
        sigma = torch.full_like(y, 0.05)
        rho = torch.zeros(batch, 2, device="cuda", dtype=torch.float16)
        plain = Student(weights).cuda().half()
        last = Student(weights).cuda().half().to(memory_format=torch.channels_last)
        y_last, sigma_last = y.to(memory_format=torch.channels_last), sigma.to(memory_format=torch.channels_last)
        row = {"size": size, "batch": batch, "denoised": ours[size, batch]}
        row["eager"] = milliseconds(lambda: plain(y, sigma, rho), a.seconds) / batch
        row["channels_last"] = milliseconds(lambda: last(y_last, sigma_last, rho), a.seconds) / batch
        row["cuda_graph"] = milliseconds(graphed(last, y_last, sigma_last, rho), a.seconds) / batch
        torch._dynamo.reset()
        compiled = torch.compile(last, mode="max-autotune")
        row["compile"] = milliseconds(lambda: compiled(y_last, sigma_last, rho), a.seconds) / batch
        best = min(row[k] for k in ("eager", "channels_last", "cuda_graph", "compile"))
        row["times_faster"] = best / row["denoised"]
        rows.append(row)

    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, fp16, milliseconds per slice on the device")
    columns = ["size", "batch", "denoised", "eager", "channels_last", "cuda_graph", "compile", "times_faster"]
    print("".join(f"{c:>15}" for c in columns))
    for r in rows:
        print("".join(f"{r[c]:>15}" if c in ("size", "batch") else f"{r[c]:>15.4f}" for c in columns))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
