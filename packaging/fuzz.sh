#!/bin/sh
# fuzz.sh TIME [PACKAGE...]: runs every fuzz target of the packages, by default of
# the whole module, for TIME, one after the other. A finding is left in the package's testdata/fuzz and fails the run.
set -eu
time=${1:-10s}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- ./...
go=${GO:-go}
ran=0
for package in $($go list "$@"); do
	for target in $($go test -run '^$' -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		echo "== $package $target ($time)"
		$go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package"
		ran=$((ran + 1))
	done
done
echo "fuzzed $ran targets for $time each"
[ "$ran" -gt 0 ]
