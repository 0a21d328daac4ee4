// Runs ONNX networks on ONNX Runtime with one thread, at the command of main.go:
// "load NAME FILE" or "run NAME" on a line of its own, answered by one line of JSON.
"use strict";
const fs = require("fs");
const readline = require("readline");
const ort = require("onnxruntime-node");

const [, , folder, size] = process.argv;
const floats = (name) => {
  const b = fs.readFileSync(`${folder}/${name}`);
  return new Float32Array(b.buffer.slice(b.byteOffset, b.byteOffset + b.length));
};
const y = floats("y"), shape = [1, 1, +size, +size];
const feeds = { y: new ort.Tensor("float32", y, shape), sigma: new ort.Tensor("float32", floats("sigma"), shape) };
const sessions = {};

async function answer(line) {
  const [command, name, file] = line.split(" ");
  if (command === "load") {
    sessions[name] = await ort.InferenceSession.create(file, {
      executionProviders: ["cpu"], graphOptimizationLevel: "all", intraOpNumThreads: 1, interOpNumThreads: 1, executionMode: "sequential",
    });
    return { version: require("onnxruntime-node/package.json").version };
  }
  const start = process.cpuUsage();
  const { out } = await sessions[name].run(feeds);
  const used = process.cpuUsage(start);
  fs.writeFileSync(`${folder}/out`, Buffer.from(out.data.buffer, out.data.byteOffset, out.data.byteLength));
  return { ms: (used.user + used.system) / 1000 };
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    try {
      console.log(JSON.stringify(await answer(line)));
    } catch (e) {
      console.log(JSON.stringify({ error: String(e) }));
    }
  }
})();
