# For the scripts beside this one: a place of their own to run an engine in, and checks.
#
#   RUNTIME=/path/to/damda runtime-tools-tests/engines/docker
#
# Each script runs in new mount, network, pid and ipc namespaces, with /run on a tmpfs: what it
# mounts, starts and configures is gone when it ends. Only cgroups are left, in one directory of
# its own per hierarchy, and it removes those.

runtime=$(readlink -f "${RUNTIME:?set RUNTIME to the binary to test}")
name=$(basename "$0")

skip() {
	echo "skipped $name: $1"
	exit 0
}

# Runs this script again in namespaces of its own, and removes its cgroups in the end.
in_private_namespaces() {
	[ "$(id -u)" = 0 ] || skip "needs root"
	if [ -n "${PRIVATE:-}" ]; then
		mount --make-rshared /
		mount -t tmpfs -o mode=755 tmpfs /run
		ip link set lo up
		return
	fi
	work=$(mktemp -d /tmp/engine-XXXXXX)
	cgroup=damda-$name-$$
	export work cgroup
	status=0
	PRIVATE=yes unshare --mount --net --pid --ipc --fork --kill-child --mount-proc "$0" "$@" || status=$?
	# What ran in the pid namespace is dead; its cgroups are empty in a moment.
	for _ in 1 2 3 4 5; do
		find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null && break
		sleep 0.2
	done
	left=$(find /sys/fs/cgroup -type d -path "*/$cgroup*" 2>/dev/null)
	rm -rf --one-file-system "$work"
	if [ -n "$left" ]; then
		echo "FAILED  $name: cgroups are left: $left"
		status=1
	fi
	exit "$status"
}

passed=0
failed=0

ok() {
	passed=$((passed + 1))
	echo "ok      $name: $1"
}

fail() {
	failed=$((failed + 1))
	echo "FAILED  $name: $1"
}

# check WHAT COMMAND...: the command succeeds.
check() {
	what=$1
	shift
	if output=$("$@" 2>&1); then ok "$what"; else fail "$what: $*: $output"; fi
}

# prints WHAT EXPECTED COMMAND...: the command succeeds, and the text is in what it prints.
prints() {
	what=$1 expected=$2
	shift 2
	if ! output=$("$@" 2>&1); then
		fail "$what: $*: $output"
		return
	fi
	case $output in
	*"$expected"*) ok "$what" ;;
	*) fail "$what: expected '$expected' in: $output" ;;
	esac
}

# exits WHAT STATUS COMMAND...: the command ends with the status.
exits() {
	what=$1 expected=$2
	shift 2
	status=0
	output=$("$@" 2>&1) || status=$?
	if [ "$status" = "$expected" ]; then ok "$what"; else fail "$what: exit status $status, expected $expected: $output"; fi
}

# until_true SECONDS COMMAND...: waits for it.
until_true() {
	end=$(($(date +%s) + $1))
	shift
	while ! "$@" >/dev/null 2>&1; do
		[ "$(date +%s)" -lt "$end" ] || return 1
		sleep 0.05
	done
}

# The engine's log, when something failed.
finish() {
	echo "$name: $passed passed, $failed failed"
	if [ "$failed" != 0 ]; then
		tail -n 30 "$work"/*.log 2>/dev/null
		exit 1
	fi
	exit 0
}

# busybox_rootfs DIR: a root file system of Debian's static busybox.
busybox_rootfs() {
	mkdir -p "$1/bin" "$1/etc" "$1/proc" "$1/sys" "$1/dev" "$1/tmp" "$1/root"
	chmod 1777 "$1/tmp"
	cp /bin/busybox "$1/bin/busybox"
	for applet in $(/bin/busybox --list); do
		[ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
	done
	echo 'root:x:0:0:root:/root:/bin/sh
user:x:1000:1000:user:/tmp:/bin/sh' >"$1/etc/passwd"
	echo 'root:x:0:
user:x:1000:' >"$1/etc/group"
}

# image_tar NAME ROOTFS FILE: the root file system as an image in the form of `docker save`.
image_tar() {
	image=$(mktemp -d "$work/image-XXXXXX")
	tar -C "$2" --numeric-owner --owner=0 --group=0 -cf "$image/layer.tar" .
	digest=$(sha256sum "$image/layer.tar" | cut -d' ' -f1)
	arch=$(uname -m | sed -e s/x86_64/amd64/ -e s/aarch64/arm64/)
	printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
		"$arch" "$digest" >"$image/config.json"
	printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$1" >"$image/manifest.json"
	tar -C "$image" -cf "$3" manifest.json config.json layer.tar
	rm -rf "$image"
}
