#!/bin/sh
# After the files are gone. The state folder may hold images that no archive
# has yet: only a person may delete it.
set -e
case "$1" in
remove | purge | 0)
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
	fi
	if [ -d /var/lib/denoised ]; then
		echo "denoised: /var/lib/denoised is kept, it may hold images not yet forwarded" >&2
	fi
	;;
esac
