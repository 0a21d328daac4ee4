#!/bin/sh
# After the files of denoised-cuda are gone. $1: "remove" (deb) or 0 (rpm) for good: the
# service starts anew, without the worker and locked tighter. After an upgrade the new
# package has started it already, or will; and "purge" follows a removal.
set -e
case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
		systemctl try-restart denoised.service || echo "denoised: restart failed, see: journalctl -u denoised" >&2
	fi
	;;
esac
