// The floor that hack/bench measures runtimes against: the calls that the default bundle needs of
// the kernel, and nothing else. There is no configuration, no check, no error message, no state.
//
//   floor ROOTFS PROGRAM
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <grp.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const hierarchies[] = {"cpu", "cpuacct", "cpuset", "memory", "devices",
					  "freezer", "blkio", "pids", "systemd"};

static void put(int directory, const char *name, const char *text)
{
	int fd = openat(directory, name, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		perror(name);
	close(fd);
}

// Both sides of the cgroup: v1's hierarchies where they are, else v2.
static void each_cgroup(const char *id, pid_t pid)
{
	char path[256], text[32];
	snprintf(text, sizeof text, "%d", pid);
	for (size_t i = 0; i < sizeof hierarchies / sizeof *hierarchies; i++) {
		snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s", hierarchies[i], id);
		if (pid == 0) {
			rmdir(path);
			continue;
		}
		if (mkdir(path, 0755) < 0)
			continue;
		int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (!strcmp(hierarchies[i], "cpuset")) {
			put(directory, "cpuset.cpus", "0-1");
			put(directory, "cpuset.mems", "0");
		}
		if (!strcmp(hierarchies[i], "devices")) {
			put(directory, "devices.deny", "a");
			put(directory, "devices.allow", "c *:* m");
			put(directory, "devices.allow", "b *:* m");
			put(directory, "devices.allow", "c 1:3 rwm");
			put(directory, "devices.allow", "c 1:5 rwm");
			put(directory, "devices.allow", "c 1:7 rwm");
			put(directory, "devices.allow", "c 1:8 rwm");
			put(directory, "devices.allow", "c 1:9 rwm");
			put(directory, "devices.allow", "c 5:0 rwm");
			put(directory, "devices.allow", "c 5:2 rwm");
			put(directory, "devices.allow", "c 136:* rwm");
		}
		put(directory, "cgroup.procs", text);
		close(directory);
	}
}

static void node(const char *name, unsigned major, unsigned minor)
{
	mknod(name, S_IFCHR | 0666, makedev(major, minor));
}

static void inside(const char *rootfs, char *program, int go)
{
	char byte;
	setsid();
	umask(0);
	if (read(go, &byte, 1) < 0)
		_exit(1);
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	ioctl(s, SIOCSIFFLAGS, &lo);
	close(s);
	sethostname("floor", 5);
	mount(0, "/", 0, MS_REC | MS_SLAVE, 0);
	mount(rootfs, rootfs, 0, MS_BIND | MS_REC, 0);
	if (chdir(rootfs) < 0)
		_exit(1);
	mount("proc", "proc", "proc", 0, 0);
	mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k");
	mkdir("dev/pts", 0755);
	mkdir("dev/shm", 0755);
	mkdir("dev/mqueue", 0755);
	mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
	mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k");
	mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, 0);
	mount("sysfs", "sys", "sysfs", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, 0);
	node("dev/null", 1, 3);
	node("dev/zero", 1, 5);
	node("dev/full", 1, 7);
	node("dev/random", 1, 8);
	node("dev/urandom", 1, 9);
	node("dev/tty", 5, 0);
	int linked = symlink("/proc/self/fd", "dev/fd") + symlink("/proc/self/fd/0", "dev/stdin") +
		     symlink("/proc/self/fd/1", "dev/stdout") + symlink("/proc/self/fd/2", "dev/stderr") +
		     symlink("pts/ptmx", "dev/ptmx");
	static const char *const masked[] = {"proc/acpi", "proc/kcore", "proc/keys", "proc/latency_stats",
					     "proc/timer_list", "proc/timer_stats", "proc/sched_debug",
					     "proc/scsi", "sys/firmware"};
	for (size_t i = 0; i < sizeof masked / sizeof *masked; i++)
		if (mount("/dev/null", masked[i], 0, MS_BIND, 0) < 0)
			mount("tmpfs", masked[i], "tmpfs", MS_RDONLY, 0);
	static const char *const read_only[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
	for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
		mount(read_only[i], read_only[i], 0, MS_BIND | MS_REC, 0);
		mount(0, read_only[i], 0, MS_BIND | MS_REMOUNT | MS_RDONLY, 0);
	}
	syscall(SYS_pivot_root, ".", ".");
	umount2(".", MNT_DETACH);
	mount(0, "/", 0, MS_BIND | MS_REMOUNT | MS_RDONLY, 0);
	linked += chdir("/");
	struct rlimit files = {1024, 1024};
	setrlimit(RLIMIT_NOFILE, &files);
	for (int cap = 0; cap < 41; cap++)
		if (cap != 5 && cap != 10 && cap != 29)
			prctl(PR_CAPBSET_DROP, cap);
	setgroups(0, 0);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	uint32_t keep = 1u << 5 | 1u << 10 | 1u << 29;
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{keep, keep, 0}, {0, 0, 0}};
	syscall(SYS_capset, &header, data);
	syscall(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC);
	char *const argv[] = {program, 0}, *const envp[] = {"PATH=/bin", "TERM=xterm", 0};
	execve(program, argv, envp);
	_exit(127 + !!linked);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 64;
	char id[32];
	int go[2], status;
	snprintf(id, sizeof id, "floor-%d", getpid());
	if (pipe2(go, O_CLOEXEC) < 0)
		return 1;
	struct clone_args args = {.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS,
				  .exit_signal = SIGCHLD};
	pid_t pid = syscall(SYS_clone3, &args, sizeof args);
	if (pid == 0)
		inside(argv[1], argv[2], go[0]);
	each_cgroup(id, pid);
	if (write(go[1], "", 1) < 0)
		return 1;
	waitpid(pid, &status, 0);
	each_cgroup(id, 0);
	return WEXITSTATUS(status);
}
