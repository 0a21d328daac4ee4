#!/usr/bin/env python3
"""Golden vectors of a student or a noise meter, computed by PyTorch.

    reference.py weights.safetensors golden.safetensors

It shares nothing with the program but the file format, so that both being wrong alike is
unlikely. Needs PyTorch and NumPy (Debian: python3-torch, python3-numpy).
"""
import json
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F


def read(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:8 + size]), data[8 + size:]
    meta = header.pop("__metadata__", {})
    return meta, {name: torch.from_numpy(np.frombuffer(body[t["data_offsets"][0]:t["data_offsets"][1]], "<f4")
                                         .reshape(t["shape"]).copy()) for name, t in header.items()}


def write(path, tensors):
    header, body = {"__metadata__": {}}, b""
    for name in sorted(tensors):
        raw = tensors[name].detach().contiguous().numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    open(path, "wb").write(struct.pack("<Q", len(text)) + text + body)


def conv(w, name, x):
    weight = w[name + ".weight"]
    return F.conv2d(x, weight, w[name + ".bias"], padding=weight.shape[-1] // 2)


def student(w, y, sigma, told):
    cells = torch.cat([F.pixel_unshuffle(y[None, None], 2), 10 * F.avg_pool2d(sigma[None, None], 2)], 1)
    constants = told[None, :, None, None].expand(1, -1, *cells.shape[2:])
    h = conv(w, "head", torch.cat([cells, constants], 1))
    block = 0
    while f"blocks.{block}.a.weight" in w:
        h = h + conv(w, f"blocks.{block}.b", F.relu(conv(w, f"blocks.{block}.a", h)))
        block += 1
    return y - F.pixel_shuffle(conv(w, "tail", h), 2)[0, 0]


def meter(w, x):
    h = x.permute(2, 0, 1)[None]
    layers = ["in.a", "in.b"] + sorted(n[:-len(".weight")] for n in w if n.startswith("around.") and n.endswith(".weight"))
    for name in layers:
        h = F.relu(conv(w, name, h))
    return conv(w, "out", h)[0].permute(1, 2, 0)


def main():
    meta, w = read(sys.argv[1])
    torch.manual_seed(1)
    if meta["format"].startswith("denoised-student-v3"):
        rows, columns = torch.arange(48.0)[:, None], torch.arange(64.0)[None]
        sigma = 0.05 * (1 + 0.3 * torch.sin(rows / 9) * torch.cos(columns / 11))
        y = 0.4 + 0.2 * torch.sin(columns / 5) * torch.cos(rows / 7) + sigma * torch.randn(48, 64)
        told = torch.tensor([0.3, 0.2, -0.1, -0.05, 0.02, 0.03, 0.08])
        write(sys.argv[2], {"input": y, "sigma": sigma, "told": told, "output": student(w, y, sigma, told)})
    elif meta["format"].startswith("denoised-meter-v1"):
        x = torch.randn(12, 16, w["in.a.weight"].shape[1])
        write(sys.argv[2], {"input0": x, "output": meter(w, x)})
    else:
        sys.exit("no reference for the format " + meta["format"])


main()
