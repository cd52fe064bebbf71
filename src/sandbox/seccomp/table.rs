//! The table of system calls: which kind of thread may make which, and with which arguments.
//!
//! Whatever is not here fails with `EPERM`. No kind can execute, trace, mount, or map memory to execute it; none but that of the
//! control socket, which is only there where it is asked for, can open or connect.

use libc::{c_int, c_long};

use crate::sandbox::ThreadKind as Kind;

/// A system call, and what its arguments must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// As strace(1) calls it.
    pub name: &'static str,
    pub(super) number: c_long,
    pub(super) only: Only,
}

/// Which of its calls are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Only {
    /// All of them.
    All,
    /// The argument of this place is one of these.
    OneOf(u8, &'static [u64]),
    /// The argument of this place has none of these bits.
    Without(u8, u64),
    /// Those bits of the argument of this place that are in the mask are these.
    Bits(u8, u64, u64),
    /// The argument of the first place is one of these; and those bits of that of the second place that are in the mask are.
    Both((u8, &'static [u64]), (u8, u64, &'static [u64])),
    /// The argument of this place is the number of this process.
    Own(u8),
}

macro_rules! call {
    ($number:ident, $name:literal, $only:expr) => {
        Call { name: $name, number: libc::$number, only: $only }
    };
    ($number:ident, $name:literal) => {
        call!($number, $name, Only::All)
    };
}

const fn argument(value: c_int) -> u64 {
    // As the kernel looks at 32 bits of it.
    value.cast_unsigned() as u64
}

/// Name spaces: a thread has those of its process.
const NAMESPACES: u64 = 0x7e02_0080;
const THREAD: u64 = argument(
    libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM,
);
/// What fork(3) asks for besides the signal of its end.
const FORK: u64 = argument(libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID);

/// What a thread needs to live, to allocate, to say something in the log, to be narrowed further and to end; and a process
/// that gives itself up (abort(3)).
const LIFE: &[Call] = &[
    call!(SYS_futex, "futex"),
    call!(SYS_read, "read"),
    call!(SYS_write, "write"),
    call!(SYS_writev, "writev"),
    call!(SYS_close, "close"),
    // Whoever closes a descriptor asks in builds with debug assertions whether there is one.
    call!(SYS_fcntl, "fcntl", Only::OneOf(1, &[argument(libc::F_GETFD)])),
    call!(SYS_mmap, "mmap", Only::Without(2, argument(libc::PROT_EXEC))),
    call!(SYS_mprotect, "mprotect", Only::Without(2, argument(libc::PROT_EXEC))),
    call!(SYS_munmap, "munmap"),
    call!(SYS_mremap, "mremap"),
    call!(SYS_madvise, "madvise"),
    call!(SYS_brk, "brk"),
    call!(SYS_rt_sigprocmask, "rt_sigprocmask"),
    call!(SYS_rt_sigaction, "rt_sigaction"),
    call!(SYS_rt_sigreturn, "rt_sigreturn"),
    call!(SYS_sigaltstack, "sigaltstack"),
    call!(SYS_restart_syscall, "restart_syscall"),
    call!(SYS_exit, "exit"),
    call!(SYS_exit_group, "exit_group"),
    call!(SYS_getpid, "getpid"),
    call!(SYS_gettid, "gettid"),
    call!(SYS_tgkill, "tgkill", Only::Own(0)),
    call!(SYS_sched_getaffinity, "sched_getaffinity"),
    call!(SYS_sched_yield, "sched_yield"),
    call!(SYS_clock_gettime, "clock_gettime"),
    call!(SYS_clock_nanosleep, "clock_nanosleep"),
    call!(SYS_getrandom, "getrandom"),
    call!(SYS_set_robust_list, "set_robust_list"),
    call!(SYS_rseq, "rseq"),
    call!(SYS_ppoll, "ppoll"),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_poll, "poll"),
    // A signal is handled on any thread, and handed on through a socket; to no other address than it is connected to.
    call!(SYS_sendto, "sendto", Only::Bits(4, u64::MAX, 0)),
    call!(
        SYS_prctl,
        "prctl",
        Only::OneOf(0, &[argument(libc::PR_SET_NAME), argument(libc::PR_SET_NO_NEW_PRIVS)])
    ),
    call!(SYS_seccomp, "seccomp", Only::OneOf(0, &[libc::SECCOMP_SET_MODE_FILTER as u64])),
];

/// To start a thread. Of clone3(2) the kernel tells a filter nothing: another filter has it answer as if there were none,
/// and the C library makes the older call.
const STARTS_THREADS: &[Call] =
    &[call!(SYS_clone3, "clone3"), call!(SYS_clone, "clone", Only::Bits(0, THREAD | NAMESPACES, THREAD))];

/// To make a process that goes on with this program.
const STARTS_PROCESSES: &[Call] = &[
    call!(SYS_clone, "clone", Only::Bits(0, !FORK, argument(libc::SIGCHLD))),
    call!(SYS_prctl, "prctl", Only::OneOf(0, &[argument(libc::PR_SET_PDEATHSIG)])),
    call!(SYS_getppid, "getppid"),
    call!(SYS_close_range, "close_range"),
    call!(SYS_pipe2, "pipe2"),
    // Which limits there are.
    call!(SYS_prlimit64, "prlimit64", Only::Bits(2, u64::MAX, 0)),
];

/// To wait for descriptors, and to be woken.
const WAITS: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    call!(SYS_epoll_wait, "epoll_wait"),
    call!(SYS_epoll_pwait, "epoll_pwait"),
    call!(SYS_epoll_pwait2, "epoll_pwait2"),
    call!(SYS_epoll_ctl, "epoll_ctl"),
];

/// To make what threads wait for and wake each other with.
const MAKES_WAITS: &[Call] = &[call!(SYS_epoll_create1, "epoll_create1"), call!(SYS_eventfd2, "eventfd2")];

/// `FIONBIO`, `FIONREAD` of `asm-generic/ioctls.h`.
const OF_SOCKETS: [u64; 2] = [0x5421, 0x541b];

/// `SO_RCVTIMEO_NEW`, `SO_SNDTIMEO_NEW` of `asm-generic/socket.h`.
const SO_RCVTIMEO_NEW: u64 = 66;
const SO_SNDTIMEO_NEW: u64 = 67;

/// To talk through a socket that is there.
const TALKS: &[Call] = &[
    call!(SYS_recvmsg, "recvmsg"),
    call!(SYS_sendmsg, "sendmsg"),
    call!(SYS_recvfrom, "recvfrom"),
    call!(SYS_sendto, "sendto"),
    call!(SYS_shutdown, "shutdown"),
    call!(SYS_getsockopt, "getsockopt"),
    call!(
        SYS_setsockopt,
        "setsockopt",
        // Timeouts, by which names the C library's header and the kernel's know them; not filters.
        Only::OneOf(
            2,
            &[
                argument(libc::SO_OOBINLINE),
                argument(libc::SO_RCVTIMEO),
                argument(libc::SO_SNDTIMEO),
                SO_RCVTIMEO_NEW,
                SO_SNDTIMEO_NEW
            ]
        )
    ),
    call!(SYS_getpeername, "getpeername"),
    call!(
        SYS_fcntl,
        "fcntl",
        Only::OneOf(
            1,
            &[
                argument(libc::F_DUPFD_CLOEXEC),
                argument(libc::F_GETFD),
                argument(libc::F_GETFL),
                argument(libc::F_SETFL),
                argument(libc::F_GET_SEALS),
            ]
        )
    ),
    call!(SYS_ioctl, "ioctl", Only::OneOf(1, &OF_SOCKETS)),
    // Not of datagrams: those can be sent to any address.
    call!(
        SYS_socketpair,
        "socketpair",
        Only::Both(
            (0, &[argument(libc::AF_UNIX)]),
            (1, SOCKET_TYPE, &[argument(libc::SOCK_STREAM), argument(libc::SOCK_SEQPACKET)])
        )
    ),
];

/// Those bits of the second argument of socketpair(2) that are no flags.
const SOCKET_TYPE: u64 = 0xf;

/// To let in who connects, and to take sockets away at the end.
const LISTENS: &[Call] = &[
    call!(SYS_accept4, "accept4"),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_unlink, "unlink"),
    call!(SYS_unlinkat, "unlinkat"),
];

/// What is open, told by the kernel.
const ASKS: &[Call] = &[
    call!(SYS_statx, "statx"),
    call!(SYS_fstat, "fstat"),
    call!(SYS_newfstatat, "newfstatat"),
    call!(SYS_fstatfs, "fstatfs"),
    call!(SYS_pread64, "pread64"),
    call!(SYS_lseek, "lseek"),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_readlink, "readlink"),
    call!(SYS_readlinkat, "readlinkat"),
];

/// To lock a disk's file, for this process and for QEMU, and to forget what has been read of it; to unlock it at its end: whoever has a part of a disk may be the last that
/// does. And to end the processes that check descriptors, and to wait for them.
const ENDS: &[Call] = &[
    call!(SYS_shutdown, "shutdown"),
    call!(SYS_wait4, "wait4"),
    call!(SYS_flock, "flock"),
    call!(SYS_fadvise64, "fadvise64"),
    call!(
        SYS_fcntl,
        "fcntl",
        Only::OneOf(
            1,
            &[argument(libc::F_OFD_SETLK), argument(libc::F_OFD_GETLK), argument(libc::F_OFD_SETLKW)]
        )
    ),
];

/// `FS_IOC_FIEMAP`, `BLKDISCARD`, `BLKZEROOUT`, `BLKGETSIZE64` of `linux/fs.h`.
const OF_DISKS: [u64; 4] = [0xc020_660b, 0x1277, 0x127f, 0x8008_1272];

/// To change what is in a disk, and to have it last.
const DISK: &[Call] = &[
    call!(SYS_preadv, "preadv"),
    call!(SYS_preadv2, "preadv2"),
    call!(SYS_mincore, "mincore"),
    // Whose file the kernel tells that of.
    call!(SYS_geteuid, "geteuid"),
    call!(SYS_pwritev, "pwritev"),
    call!(SYS_pwritev2, "pwritev2"),
    call!(SYS_pwrite64, "pwrite64"),
    call!(SYS_fallocate, "fallocate"),
    call!(SYS_fdatasync, "fdatasync"),
    call!(SYS_fsync, "fsync"),
    call!(SYS_msync, "msync"),
    call!(SYS_sync_file_range, "sync_file_range"),
    call!(SYS_ioctl, "ioctl", Only::OneOf(1, &OF_DISKS)),
];

/// To keep what a front-end knows of its configuration.
const ATTRIBUTES: &[Call] = &[
    call!(SYS_fgetxattr, "fgetxattr"),
    call!(SYS_fsetxattr, "fsetxattr"),
    call!(SYS_fremovexattr, "fremovexattr"),
];

/// To wake a guest without waiting for it, and to look what that took.
const AIO: &[Call] = &[
    call!(SYS_io_setup, "io_setup"),
    call!(SYS_io_submit, "io_submit"),
    call!(SYS_io_getevents, "io_getevents"),
    call!(SYS_io_destroy, "io_destroy"),
    // Of itself only.
    call!(SYS_sched_setaffinity, "sched_setaffinity", Only::OneOf(0, &[0])),
    call!(
        SYS_setpriority,
        "setpriority",
        Only::Both((0, &[argument(libc::PRIO_PROCESS as c_int)]), (1, u64::MAX, &[0]))
    ),
    call!(SYS_getrusage, "getrusage", Only::OneOf(0, &[argument(libc::RUSAGE_THREAD)])),
];

/// `UFFDIO_API`, `_REGISTER`, `_UNREGISTER`, `_WAKE`, `_COPY` of `linux/userfaultfd.h`.
const OF_PAGES: [u64; 5] = [0xc018_aa3f, 0xc020_aa00, 0x8010_aa01, 0x8010_aa02, 0xc028_aa03];

/// To be a guest's memory before its pages have come; only where a disk offers that.
pub(super) const POSTCOPY: &[Call] = &[
    // For faults of this program, not of the kernel: what an ordinary user may have.
    call!(SYS_userfaultfd, "userfaultfd", Only::Bits(0, 1, 1)),
    call!(SYS_memfd_create, "memfd_create"),
    call!(SYS_ioctl, "ioctl", Only::OneOf(1, &OF_PAGES)),
];

/// `BLKROGET`, `BLKSSZGET`, `BLKPBSZGET`, `BLKFLSBUF` … of `linux/fs.h`: what a block device says of itself.
const OF_DEVICES: [u64; 6] = [0x125e, 0x1268, 0x127b, 0x127a, 0x1278, 0x8008_1272];

/// To open disks and sockets, and to make files of them. Landlock says where.
const OPENS: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    call!(SYS_open, "open"),
    call!(SYS_openat, "openat"),
    call!(SYS_openat2, "openat2"),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_stat, "stat"),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_lstat, "lstat"),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_access, "access"),
    call!(SYS_faccessat, "faccessat"),
    call!(SYS_faccessat2, "faccessat2"),
    call!(SYS_statfs, "statfs"),
    call!(SYS_getdents64, "getdents64"),
    call!(SYS_getcwd, "getcwd"),
    call!(SYS_ftruncate, "ftruncate"),
    // The memory of a private disk.
    call!(SYS_memfd_create, "memfd_create"),
    call!(SYS_linkat, "linkat"),
    call!(SYS_renameat2, "renameat2"),
    call!(SYS_socket, "socket", Only::OneOf(0, &[argument(libc::AF_UNIX)])),
    call!(SYS_bind, "bind"),
    call!(SYS_listen, "listen"),
    // Whether somebody answers on a socket that is to be replaced.
    call!(SYS_connect, "connect"),
    #[cfg(target_arch = "x86_64")]
    call!(SYS_chmod, "chmod"),
    call!(SYS_fchmod, "fchmod"),
    call!(SYS_fchmodat, "fchmodat"),
    call!(SYS_fchownat, "fchownat"),
    call!(SYS_inotify_add_watch, "inotify_add_watch"),
    call!(SYS_inotify_rm_watch, "inotify_rm_watch"),
    call!(SYS_ioctl, "ioctl", Only::OneOf(1, &OF_DEVICES)),
    call!(SYS_fcntl, "fcntl", Only::OneOf(1, &[argument(libc::F_SETLK), argument(libc::F_GETLK)])),
    // Which limits there are.
    call!(SYS_prlimit64, "prlimit64", Only::Bits(2, u64::MAX, 0)),
    call!(SYS_sysinfo, "sysinfo"),
    call!(SYS_uname, "uname"),
];

/// To make the memory of a front-end's private disk.
const MAKES_PRIVATE: &[Call] = &[call!(SYS_memfd_create, "memfd_create"), call!(SYS_ftruncate, "ftruncate")];

/// What a kind does itself.
const fn own(kind: Kind) -> &'static [&'static [Call]] {
    match kind {
        Kind::Main => &[LIFE, STARTS_THREADS, WAITS, TALKS, LISTENS, ASKS, ENDS, DISK],
        Kind::Log | Kind::StartMessage => &[LIFE],
        Kind::Signals => &[LIFE, WAITS, TALKS],
        Kind::Acceptor => &[LIFE, STARTS_THREADS, WAITS, TALKS, LISTENS, ASKS, ENDS, DISK, MAKES_PRIVATE],
        Kind::Session => {
            &[LIFE, STARTS_THREADS, STARTS_PROCESSES, WAITS, MAKES_WAITS, TALKS, ASKS, ENDS, DISK, ATTRIBUTES]
        }
        Kind::WriterLock => &[LIFE, STARTS_THREADS, WAITS, MAKES_WAITS, TALKS, ASKS, ENDS, DISK, ATTRIBUTES],
        Kind::Worker => &[LIFE, STARTS_THREADS, WAITS, MAKES_WAITS, TALKS, ASKS, ENDS, DISK, ATTRIBUTES, AIO],
        Kind::Flusher => &[LIFE, ASKS, ENDS, DISK, ATTRIBUTES],
        Kind::Io => &[LIFE, ASKS, ENDS, DISK],
        Kind::Stalls => &[LIFE, ASKS, ENDS],
        Kind::Populate => &[LIFE, ASKS, ENDS, DISK],
        Kind::Rescan => &[LIFE, STARTS_THREADS, WAITS, TALKS, ASKS, ENDS, DISK, ATTRIBUTES],
        Kind::Media => &[LIFE, WAITS, ASKS, ENDS, DISK, MACHINE_CHECKS],
        Kind::Metrics => &[LIFE, TALKS, LISTENS, ASKS, ENDS],
        Kind::Control => {
            &[LIFE, STARTS_THREADS, WAITS, MAKES_WAITS, TALKS, LISTENS, ASKS, ENDS, DISK, ATTRIBUTES, OPENS]
        }
        Kind::Prefault => &[LIFE, STARTS_THREADS, WAITS, MAKES_WAITS, TALKS, ASKS, ENDS],
        Kind::ConnectionWatcher => &[LIFE, TALKS, ENDS],
        Kind::AttributeKeeper => &[LIFE, ATTRIBUTES],
        Kind::Spawner => &[LIFE, STARTS_PROCESSES, ENDS, KILLS],
        Kind::Checker => &[LIFE, TALKS, ASKS, CHECKS],
    }
}

/// To end a checker that is stuck. Whoever makes the spawner anew has it, too: Landlock sees to it that no other process is
/// ended (since Linux 6.12).
const KILLS: &[Call] = &[call!(SYS_kill, "kill", Only::OneOf(1, &[argument(libc::SIGKILL)]))];

/// To be told of bad pages.
const MACHINE_CHECKS: &[Call] = &[
    call!(SYS_prctl, "prctl", Only::OneOf(0, &[argument(libc::PR_MCE_KILL)])),
    call!(SYS_eventfd2, "eventfd2"),
];

/// To end with its parent, and to be waited for until everything is closed.
const CHECKS: &[Call] = &[
    call!(SYS_prctl, "prctl", Only::OneOf(0, &[argument(libc::PR_SET_PDEATHSIG)])),
    call!(SYS_getppid, "getppid"),
    call!(SYS_pidfd_open, "pidfd_open"),
    // Connections to a socket that was handed over, to end them.
    call!(SYS_accept4, "accept4"),
];

/// What a kind may call, with what those may that it starts. A call that is in it twice may be made either way.
pub fn calls_of(kind: Kind, postcopy: bool) -> Vec<Call> {
    groups_of(kind, postcopy).concat()
}

/// Each of them once: a filter is run for many of the calls that it allows, and takes time to be installed.
fn groups_of(kind: Kind, postcopy: bool) -> Vec<&'static [Call]> {
    let mut groups: Vec<&'static [Call]> = own(kind).to_vec();
    if postcopy && matches!(kind, Kind::Session | Kind::Prefault | Kind::ConnectionWatcher) {
        groups.push(POSTCOPY);
    }
    for group in kind.starts().iter().flat_map(|started| groups_of(*started, postcopy)) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}
