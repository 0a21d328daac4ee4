"""Runs networks on PyTorch with one thread, at the command of main.go: "load NAME FILE" or
"run NAME" on a line of its own, answered by one line of JSON. A file lists the layers; NAME is
fp32 or bf16, with -nhwc for the layout that oneDNN prefers."""
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

folder, size = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)


def floats(name, *shape):
    return torch.from_numpy(np.fromfile(f"{folder}/{name}", dtype=np.float32).reshape(shape))


Y, SIGMA = floats("y", 1, 1, size, size), floats("sigma", 1, 1, size, size)
networks = {}


def load(name, file):
    kind, layout = torch.bfloat16 if "bf16" in name else torch.float32, torch.channels_last if "nhwc" in name else torch.contiguous_format
    layers = []
    for k, l in enumerate(json.load(open(file))):
        w = floats(f"w{k}", l["out"], l["in"], 3, 3).to(kind).contiguous(memory_format=layout)
        layers.append((w, floats(f"b{k}", l["out"]).to(kind), l["relu"], l["skip"]))
    networks[name] = (layers, kind, layout)
    return {"version": torch.__version__}


def run(name):
    layers, kind, layout = networks[name]
    start = time.process_time()
    with torch.inference_mode():
        x = torch.cat([F.pixel_unshuffle(Y, 2), 10 * F.avg_pool2d(SIGMA, 2)], 1).to(kind).contiguous(memory_format=layout)
        outputs = [x]
        for k, (w, b, relu, skip) in enumerate(layers):
            x = F.conv2d(x, w, b, padding=1)
            if relu:
                x = x.relu_()
            if skip:
                x = x.add_(outputs[k + 1 - skip])
            outputs.append(x)
        out = Y - F.pixel_shuffle(x, 2).float()
    ms = 1000 * (time.process_time() - start)
    out.contiguous().numpy().tofile(f"{folder}/out")
    return {"ms": ms}


for line in sys.stdin:
    command, *arguments = line.split()
    try:
        answer = {"load": load, "run": run}[command](*arguments)
    except Exception as e:
        answer = {"error": repr(e)}
    print(json.dumps(answer), flush=True)
