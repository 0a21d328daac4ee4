#!/bin/bash
# What only a card can show, as one run of some minutes: the tests of the kernels on hardware
# instead of the emulation, compute-sanitizer over them, the speed of kernels and networks, and
# PyTorch beside it. It needs no Go: "make gpu-kit" puts this script and all that it runs into
# dist/gpu-kit; copy that folder to the machine and call
#
#	./run.sh [OUT]
#
# Results go to OUT (default ./out), one file each; the last lines say what passed. Python with
# PyTorch and compute-sanitizer are used if they are there; each is reported if it is not. What takes
# longer than LIMIT (default 10m) is ended: a card that hangs fails a step and not the run.
#
# To try the script without a card: put a link libcuda.so.1 to the emulation (make emulator) into an
# empty folder and name that in LD_LIBRARY_PATH. The emulation is far too slow for bench and soak.
set -uo pipefail
cd "$(dirname "$0")"
out=$(mkdir -p "${1:-out}" && cd "${1:-out}" && pwd)
# The test binaries look for the driver here instead of the emulation.
export DENOISED_CUDA_LIB=libcuda.so.1
unset DENOISED_EMU
failed=0
limit=${LIMIT:-10m}
step() { # step NAME COMMAND...
	local name=$1
	shift
	if timeout -k 10 "$limit" "$@" >"$out/$name.txt" 2>&1; then
		echo "ok      $name"
	else
		echo "FAILED  $name (exit $?): $out/$name.txt"
		failed=1
	fi
}

date -u >"$out/machine.txt"
nvidia-smi >>"$out/machine.txt" 2>&1
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv >>"$out/machine.txt" 2>&1

step test-cuda ./cuda.test -test.v
step test-models ./models.test -test.v -test.run CUDA
if command -v compute-sanitizer >/dev/null; then
	for tool in memcheck racecheck synccheck initcheck; do
		step "sanitizer-$tool" compute-sanitizer --tool $tool --error-exitcode 9 --launch-timeout 0 \
			./cuda.test -test.run '^Test(Smoke|Train)$'
	done
else
	echo "no compute-sanitizer here"
fi
timeout -k 10 "$limit" ./denoised-cuda bench --backend cuda --size 256,320,512,1024 --batch 1,16 --json >"$out/bench.json" 2>"$out/bench.log" \
	&& echo "ok      bench" || { echo "FAILED  bench: $out/bench.log"; failed=1; }
if python3 -c 'import torch' 2>/dev/null; then
	step compare python3 compare.py weights.safetensors "$out/bench.json"
	tail -n +1 "$out/compare.txt"
else
	echo "no PyTorch here"
fi
step soak ./denoised-cuda bench --backend cuda --soak 10000
exit $failed
