#!/bin/sh
# Prints the version of the checked-out commit as packages want it: the tag
# v1.2.3 gives 1.2.3; three commits later 1.2.3+3.g0123abc; without any tag
# 0.0.0+N.g0123abc. Uncommitted changes add ".dirty".
set -eu
cd "$(dirname "$0")/.."
hash=$(git rev-parse --short=12 HEAD)
tag=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true)
if [ -n "$tag" ]; then
	version=${tag#v}
	after=$(git rev-list --count "$tag..HEAD")
	[ "$after" = 0 ] || version="$version+$after.g$hash"
else
	version="0.0.0+$(git rev-list --count HEAD).g$hash"
fi
[ -z "$(git status --porcelain --untracked-files=no)" ] || version="$version.dirty"
# Both package formats read "-" as the start of a release; "~" sorts a
# pre-release before the release in both.
echo "$version" | tr - '~'
