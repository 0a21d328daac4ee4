#!/bin/bash
# bench_receive.sh [OPTION...]: how fast does denoised take images from the
# network, next to DCMTK's and Orthanc's receivers in the same run? Options go
# to the benchmark (dicom_receive.sh -h: scenarios, counts, rounds).
#
# The benchmark itself is not part of the repository: BENCH names its folder,
# default ../shared/bench. Peers: apt install dcmtk orthanc python3-pydicom python3-numpy
set -euo pipefail
cd "$(dirname "$0")/../.."
bench=${BENCH:-../shared/bench}/dicom_receive.sh

if [ "${1:-}" = --serve ]; then # called by the benchmark: --serve PORT AET DIR, in the foreground
	port=$2 aet=$3 dir=$4
	cat >"$dir/denoised.yaml" <<-END
		state_dir: $dir/state
		dicom:
		  listen: "127.0.0.1:$port"
		  ae_titles: {$aet: "off"}
		destinations: []
		http: {listen: "127.0.0.1:0"}
		log: {level: warn}
	END
	exec bin/denoised serve --config "$dir/denoised.yaml"
fi

[ -x "$bench" ] || { echo "bench_receive.sh: no benchmark at $bench: set BENCH to the folder that holds dicom_receive.sh" >&2; exit 1; }
[ -x bin/denoised ] || { echo "bench_receive.sh: no bin/denoised: run make build" >&2; exit 1; }
[ $# -gt 0 ] || set -- -o dcmrecv,storescp-bitpres,orthanc,denoised
exec "$bench" -r "denoised|11128|DENOISED|$PWD/daemon/interop/bench_receive.sh --serve {port} {aet} {out}" "$@"
