#!/bin/sh
# After the files are in place. $1: "configure" (deb), or 1 = first, 2 = upgrade (rpm).
set -e

# The account that the unit names. Both ways leave an existing account alone.
if command -v systemd-sysusers >/dev/null 2>&1; then
	systemd-sysusers denoised.conf
elif ! getent passwd denoised >/dev/null 2>&1; then
	useradd --system --user-group --home-dir /var/lib/denoised --no-create-home \
		--shell /usr/sbin/nologin denoised
fi

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# An upgrade restarts a running service (it finishes the slices in hand
	# first); a first installation waits until the configuration was edited.
	systemctl try-restart denoised.service || echo "denoised: restart failed, see: journalctl -u denoised" >&2
fi

if { [ "$1" = configure ] && [ -z "$2" ]; } || [ "$1" = 1 ]; then
	cat <<-'END'
	denoised is installed. Next:
	  1. put the archive's address into /etc/denoised/denoised.yaml (marked EDIT)
	  2. systemctl enable --now denoised
	  3. sudo -u denoised denoised check --config /etc/denoised/denoised.yaml
	END
fi
