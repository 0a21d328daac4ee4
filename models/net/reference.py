#!/usr/bin/env python3
"""Golden vectors of a network, computed by PyTorch.

    reference.py weights.safetensors golden.safetensors
    reference.py FORMAT weights.safetensors golden.safetensors

The second form makes the weights first, at random, of a blind-spot or a diffusion network; FORMAT
is what such a file says of its architecture. So were made the files of testdata:

    reference.py "denoised-bsn-v1 2-3-4-3" testdata/bsn.safetensors testdata/bsn.golden.safetensors
    reference.py "denoised-diffusion-v2 6 2-3-4 4" testdata/diffusion.safetensors testdata/diffusion.golden.safetensors

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


def write(path, tensors, **meta):
    header, body = {"__metadata__": meta}, b""
    for name in sorted(tensors):
        raw = tensors[name].detach().contiguous().numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape),
                        "data_offsets": [len(body), len(body) + len(raw)]}
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
    around = (n[:-len(".weight")] for n in w if n.startswith("around.") and n.endswith(".weight"))
    layers = ["in.a", "in.b"] + sorted(around)
    for name in layers:
        h = F.relu(conv(w, name, h))
    return conv(w, "out", h)[0].permute(1, 2, 0)


def leaky(x):
    return F.leaky_relu(x, 0.1)


def filmed(x, f):
    scale, offset = f.chunk(2)
    return x * (1 + scale[:, None, None]) + offset[:, None, None]


def linear(w, name, v):
    return w[name + ".weight"][:, :, 0, 0] @ v + w[name + ".bias"]


def double(x):
    return F.interpolate(x, scale_factor=2, mode="nearest")


def down(w, name, x):
    return F.conv2d(x, w[name + ".weight"], w[name + ".bias"], stride=2)


def shift(x, rows):
    return F.pad(x, (0, 0, rows, 0))[:, :, :x.shape[2]]


def blind_spot(w, y, along_y, along_x, shifts):
    """y [H, W]; along_y and along_x are the codes of the hole, shifts how far each half-plane moves away."""

    def above(name, x, film=None):
        z = F.conv2d(F.pad(x, (1, 1, 2, 0)), w[name + ".weight"], w[name + ".bias"])
        return leaky(z if film is None else filmed(z, film))

    seen = []
    for turn in range(4):
        code, rows = [(along_y, shifts[0]), (along_x, shifts[1])][turn % 2]
        x = torch.rot90(y, turn, (0, 1))[None, None]
        a = above("enc0.b", above("enc0.a", x))
        b = above("enc1", down(w, "down1", shift(a, shifts[2])))
        d = above("enc2.b", above("enc2.a", down(w, "down2", shift(b, shifts[2]))))
        b = above("dec1.b", above("dec1.a", torch.cat([double(d), b], 1)))
        a = above("dec0.a", torch.cat([double(b), a], 1), linear(w, "hole.film", code))
        a = above("dec0.b", torch.cat([a, x], 1))
        seen.append(torch.rot90(shift(a, rows), -turn, (2, 3)))
    v = leaky(conv(w, "mix.v", torch.cat([seen[0], seen[2]], 1)))
    h = leaky(conv(w, "mix.h", torch.cat([seen[1], seen[3]], 1)))
    return conv(w, "mix.b", leaky(conv(w, "mix.a", torch.cat([v, h], 1))))[0].permute(1, 2, 0)


def diffusion(w, state, condition, time):
    """state [H, W, 1], condition [H, W, C], time [16]."""
    t = leaky(linear(w, "time.b", leaky(linear(w, "time.a", time))))

    def layer(name, x):
        return leaky(filmed(conv(w, name, x), linear(w, name + ".film", t)))

    a = layer("enc0.b", layer("enc0.a", torch.cat([state, condition], 2).permute(2, 0, 1)[None]))
    b = layer("enc1.b", layer("enc1.a", down(w, "down1", a)))
    d = layer("enc2.b", layer("enc2.a", down(w, "down2", b)))
    b = layer("dec1.b", layer("dec1.a", torch.cat([double(d), b], 1)))
    a = layer("dec0.b", layer("dec0.a", torch.cat([double(b), a], 1)))
    return conv(w, "out", a)[0].permute(1, 2, 0)


def shapes(architecture):
    """The convolutions of an architecture: name, outputs, inputs, size."""
    kind, *rest = architecture.split()
    if kind == "denoised-bsn-v1":
        c0, c1, c2, mix = map(int, rest[0].split("-"))
        return [("hole.film", 2 * c0, 3, 1), ("enc0.a", c0, 1, 3), ("enc0.b", c0, c0, 3), ("down1", c1, c0, 2),
                ("enc1", c1, c1, 3), ("down2", c2, c1, 2), ("enc2.a", c2, c2, 3), ("enc2.b", c2, c2, 3),
                ("dec1.a", c1, c2 + c1, 3), ("dec1.b", c1, c1, 3), ("dec0.a", c0, c1 + c0, 3),
                ("dec0.b", c0, c0 + 1, 3), ("mix.v", mix, 2 * c0, 1), ("mix.h", mix, 2 * c0, 1),
                ("mix.a", mix, 2 * mix, 1), ("mix.b", 1, mix, 1)]
    if kind == "denoised-diffusion-v2":
        condition, code = int(rest[0]), int(rest[2])
        c0, c1, c2 = map(int, rest[1].split("-"))
        layers = [("enc0.a", c0, 1 + condition), ("enc0.b", c0, c0), ("enc1.a", c1, c1), ("enc1.b", c1, c1),
                  ("enc2.a", c2, c2), ("enc2.b", c2, c2), ("dec1.a", c1, c2 + c1), ("dec1.b", c1, c1),
                  ("dec0.a", c0, c1 + c0), ("dec0.b", c0, c0)]
        return ([("time.a", code, 16, 1), ("time.b", code, code, 1), ("down1", c1, c0, 2), ("down2", c2, c1, 2),
                 ("out", 1, c0, 3)] + [(name, out, into, 3) for name, out, into in layers] +
                [(name + ".film", 2 * out, code, 1) for name, out, _ in layers])
    sys.exit("no network of the format " + architecture + " can be made")


def make(architecture, path):
    """Random weights, of which none is zero."""
    w = {}
    for name, out, into, size in shapes(architecture):
        w[name + ".weight"] = torch.randn(out, into, size, size) * (2 / (into * size * size)) ** 0.5
        w[name + ".bias"] = 0.3 * torch.randn(out)
    write(path, w, format=architecture)


def main():
    torch.manual_seed(1)
    if len(sys.argv) == 4:
        make(*sys.argv[1:3])
        del sys.argv[1]
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
    elif meta["format"].startswith("denoised-bsn-v1"):
        y, along_y, along_x = torch.rand(12, 16), torch.tensor([0., 0, 1]), torch.tensor([0., 1, 0])
        shifts = [3, 2, 1]  # away from a hole of 3 pixels along x and 5 along y
        write(sys.argv[2], {"input0": y[:, :, None], "input1": along_y, "input2": along_x,
                            "output": blind_spot(w, y, along_y, along_x, shifts)}, shifts=",".join(map(str, shifts)))
    elif meta["format"].startswith("denoised-diffusion-v2"):
        state, condition = torch.randn(8, 12, 1), torch.randn(8, 12, int(meta["format"].split()[1]))
        angles = np.pi * 0.7 * 1.7 ** torch.arange(8.0, dtype=torch.float64)  # the time is 0.7
        time = torch.stack([torch.sin(angles), torch.cos(angles)], 1).flatten().float()
        write(sys.argv[2], {"input0": state, "input1": condition, "input2": time,
                            "output": diffusion(w, state, condition, time)})
    else:
        sys.exit("no reference for the format " + meta["format"])


main()
