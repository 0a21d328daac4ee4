#!/bin/sh
# build.sh ARCH OUT: builds the .deb and the .rpm for a Go architecture (amd64,
# arm64) into folder OUT. The same commit gives the same bytes: static binary
# without paths of this machine, version from the tag, dates from the commit.
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

for format in deb rpm; do
	$go tool -modfile=packaging/tools/go.mod nfpm package --config packaging/nfpm.yaml --packager $format --target "$out"
done
