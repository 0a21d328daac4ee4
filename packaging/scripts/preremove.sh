#!/bin/sh
# Before the files go. $1: "remove" (deb) or 0 (rpm) for good, anything else is an upgrade.
set -e
case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now denoised.service
	fi
	;;
esac
