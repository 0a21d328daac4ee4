#!/bin/sh
# build.sh ARCH OUT: builds the .deb and the .rpm for a Go architecture (amd64,
# arm64) into folder OUT. The same commit gives the same bytes: static binary
# without paths of this machine, version from the tag, dates from the commit.
# The packages with the CUDA backend need a C compiler for ARCH: they are built
# where ARCH is that of this machine. They ask for the C library whose symbols the
# program has; build them on the oldest system that is to be served.
set -eu
arch=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
go=${GO:-go}

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
PACKAGE_VERSION=$(packaging/version.sh)
PACKAGE_ARCH=$arch
STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT
export SOURCE_DATE_EPOCH PACKAGE_VERSION PACKAGE_ARCH STAGE

CGO_ENABLED=0 GOOS=linux GOARCH=$arch $go build -trimpath -buildvcs=true -o "$STAGE/denoised" ./cmd/denoised
CGO_ENABLED=0 $go run -trimpath ./cmd/denoised completion bash >"$STAGE/completion.bash"

configs=packaging/nfpm.yaml
if [ "$arch" = "$($go env GOHOSTARCH)" ] && [ "$($go env GOHOSTOS)" = linux ] && command -v "$($go env CC)" >/dev/null; then
	GOFLAGS="${GOFLAGS:-} -buildvcs=true" make -s build-cuda GO="$go" OUT="$STAGE/denoised-cuda"
	GLIBC=$(objdump -T "$STAGE/denoised-cuda" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1)
	GLIBC=${GLIBC#GLIBC_}
	export GLIBC
	configs="$configs packaging/nfpm-cuda.yaml"
else
	echo "without the CUDA packages: they are built on a $arch machine with a C compiler" >&2
fi

for config in $configs; do
	for format in deb rpm; do
		$go tool -modfile=packaging/tools/go.mod nfpm package --config $config --packager $format --target "$out"
	done
done
