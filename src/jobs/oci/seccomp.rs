//! The system calls that a job may make.
//!
//! An allow list by what ordinary programs do. Whatever is on no list answers ENOSYS, so that a C library meeting
//! a kernel call newer than this list falls back to the older one (EPERM would be taken for a real refusal). What is
//! known and refused answers EPERM. `clone3` is on no list by intention: its flags lie in memory where a filter
//! cannot look, and with ENOSYS libraries use `clone`, whose flags it can check.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Files and directories. (These lists are words in a string, so that they stay readable.)
const FILES: &str = "\
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 \
    fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr \
    flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents \
    getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl \
    lchown lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat \
    mkdir mkdirat mknod mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev \
    pwritev2 read readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir \
    sendfile setxattr splice stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs \
    tee truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev";

/// Memory.
const MEMORY: &str = "\
    brk cachestat get_mempolicy madvise map_shadow_stack mbind membarrier memfd_create memfd_secret \
    mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc \
    pkey_free pkey_mprotect process_madvise process_mrelease remap_file_pages set_mempolicy \
    set_mempolicy_home_node";

/// Processes, threads and who they are.
const PROCESSES: &str = "\
    arch_prctl capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu \
    getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid \
    getrlimit getrusage getsid gettid getuid ioprio_get ioprio_set kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self pidfd_open pidfd_send_signal prctl prlimit64 rseq \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid \
    setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid \
    setuid sysinfo tgkill times tkill uname vfork wait4 waitid";

/// Signals, timers, waiting.
const WAITING: &str = "\
    alarm clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 futex futex_requeue futex_wait \
    futex_waitv futex_wake getitimer gettimeofday nanosleep pause poll ppoll pselect6 restart_syscall \
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_tgsigqueueinfo select setitimer sigaltstack signalfd signalfd4 time timer_create timer_delete \
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime";

/// Sockets and other ways to talk; `socket` itself is judged by family below.
const TALKING: &str = "\
    accept accept4 bind connect getpeername getrandom getsockname getsockopt io_cancel io_destroy \
    io_getevents io_pgetevents io_setup io_submit listen mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 recvfrom recvmmsg recvmsg semctl \
    semget semop semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown \
    socketpair";

/// Known and refused: mounts and namespaces, the kernel itself, other processes' memory, the clock, and the large
/// interfaces in which most container escapes were found (bpf, perf, userfaultfd, keyrings, io_uring).
const REFUSED: &str = "\
    acct add_key adjtimex bpf chroot clock_adjtime clock_settime create_module delete_module \
    fanotify_init fanotify_mark finit_module fsconfig fsmount fsopen fspick init_module io_uring_enter \
    io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie \
    migrate_pages mount mount_setattr move_mount move_pages name_to_handle_at nfsservctl \
    open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_vm_readv \
    process_vm_writev ptrace quotactl quotactl_fd reboot request_key setdomainname sethostname setns \
    settimeofday swapoff swapon sysfs syslog umount umount2 unshare userfaultfd ustat vhangup";

/// Every `CLONE_NEW*` flag that `clone` takes (linux/sched.h): NS, CGROUP, UTS, IPC, USER, PID, NET.
const CLONE_NEW_FLAGS: u64 = 0x7e02_0000;
/// The personalities programs ask for: the default, `UNAME26` and the like are not among them. Values as in
/// linux/personality.h: PER_LINUX, PER_LINUX32, and both with ADDR_NO_RANDOMIZE left out; all ones only asks.
const PERSONALITIES: [u64; 3] = [0x0, 0x8, 0xffff_ffff];
/// Socket families below this one are the usual ones (inet, unix, netlink, packet and so on; what of them needs a
/// capability is refused by the kernel). From 38 on come AF_ALG, AF_VSOCK, XDP: kernel crypto and hypervisor doors.
const FIRST_ODD_SOCKET_FAMILY: u64 = 38;

const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

/// The filter for this machine's architecture. Calls of a foreign architecture (32-bit code) are killed.
pub(super) fn filter() -> Result<LinuxSeccomp, OciSpecError> {
    let mut syscalls = Vec::new();
    for group in [FILES, MEMORY, PROCESSES, WAITING, TALKING] {
        syscalls.push(allow(group, None)?);
    }
    syscalls.push(allow(
        "clone",
        Some(argument(0, LinuxSeccompOperator::ScmpCmpMaskedEq, CLONE_NEW_FLAGS, Some(0))?),
    )?);
    for value in PERSONALITIES {
        syscalls
            .push(allow("personality", Some(argument(0, LinuxSeccompOperator::ScmpCmpEq, value, None)?))?);
    }
    let family = argument(0, LinuxSeccompOperator::ScmpCmpLt, FIRST_ODD_SOCKET_FAMILY, None)?;
    syscalls.push(allow("socket", Some(family))?);
    syscalls.push(
        LinuxSyscallBuilder::default()
            .names(names(REFUSED))
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(EPERM)
            .build()?,
    );
    let mut filter = LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(ENOSYS)
        .syscalls(syscalls);
    if let Some(architecture) = native() {
        filter = filter.architectures([architecture]);
    }
    filter.build()
}

fn native() -> Option<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Arch::ScmpArchX86_64),
        "aarch64" => Some(Arch::ScmpArchAarch64),
        _ => None, // the runtime adds its own
    }
}

fn allow(calls: &str, argument: Option<LinuxSeccompArg>) -> Result<LinuxSyscall, OciSpecError> {
    let rule = LinuxSyscallBuilder::default().names(names(calls)).action(LinuxSeccompAction::ScmpActAllow);
    match argument {
        Some(argument) => rule.args([argument]).build(),
        None => rule.build(),
    }
}

fn argument(
    index: usize,
    op: LinuxSeccompOperator,
    value: u64,
    value_two: Option<u64>,
) -> Result<LinuxSeccompArg, OciSpecError> {
    let argument = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    match value_two {
        Some(two) => argument.value_two(two).build(),
        None => argument.build(),
    }
}

fn names(calls: &str) -> Vec<String> {
    calls.split_ascii_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_call_is_on_two_lists_and_the_dangerous_ones_are_on_none_that_allows() {
        let mut seen = BTreeSet::new();
        for call in [FILES, MEMORY, PROCESSES, WAITING, TALKING, REFUSED].into_iter().flat_map(names) {
            assert!(seen.insert(call.clone()), "{call} twice");
        }
        assert!(seen.contains("openat") && seen.contains("ptrace") && seen.len() > 300);
        assert!(!seen.contains("clone3") && !seen.contains("clone") && !seen.contains("socket"));
    }

    #[test]
    fn unknown_calls_are_enosys_and_refused_ones_eperm() {
        let json = serde_json::to_value(filter().unwrap()).unwrap();
        assert_eq!(json["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(json["defaultErrnoRet"], 38);
        let rules = json["syscalls"].as_array().unwrap();
        let refused = rules.iter().find(|r| r["names"].to_string().contains("\"mount\"")).unwrap();
        assert_eq!(
            (refused["action"].as_str(), refused["errnoRet"].as_u64()),
            (Some("SCMP_ACT_ERRNO"), Some(1))
        );
        let clone = rules.iter().find(|r| r["names"] == serde_json::json!(["clone"])).unwrap();
        assert_eq!(clone["args"][0]["op"], "SCMP_CMP_MASKED_EQ");
        assert_eq!(clone["args"][0]["value"], CLONE_NEW_FLAGS);
    }
}
