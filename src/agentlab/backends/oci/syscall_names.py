"""System calls by name, sorted by what we make of them.  Names that an architecture lacks are skipped by runtimes."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILES = _names("""
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
    fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
    fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr
    lstat mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2
    pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir
    sendfile setxattr splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink
    unlinkat utime utimensat utimes vmsplice write writev chroot
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit cachestat""")

_PROCESSES = _names("""
    alarm arch_prctl capget capset execve execveat exit exit_group fork getcpu getegid geteuid getgid getgroups
    getitimer getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid
    ioprio_get ioprio_set kcmp kill landlock_add_rule landlock_create_ruleset landlock_restrict_self membarrier pause
    pidfd_getfd pidfd_open pidfd_send_signal prctl prlimit64 process_madvise process_mrelease process_vm_readv
    process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
    rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_tid_address setfsgid setfsuid setgid
    setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid sigaltstack
    signalfd signalfd4 tgkill time times tkill uname vfork wait4 waitid get_robust_list sysinfo""")

_MEMORY = _names("""
    brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mprotect mremap mseal
    msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages shmat shmctl shmdt shmget""")

_TALK = _names("""
    accept accept4 bind connect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
    epoll_wait_old eventfd eventfd2 futex futex_requeue futex_wait futex_waitv futex_wake getpeername getsockname
    getsockopt listen mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd
    poll ppoll pselect6 recvfrom recvmmsg recvmsg select semctl semget semop semtimedop sendmmsg sendmsg sendto
    setsockopt shutdown socketpair""")

_TIME = _names("""
    clock_getres clock_gettime clock_nanosleep getrandom gettimeofday nanosleep timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime""")

ALLOWED = _FILES | _PROCESSES | _MEMORY | _TALK | _TIME

NAMESPACES = _names("""
    fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root setdomainname sethostname setns
    umount umount2 unshare statmount listmount""")

REFUSED = _names("""
    acct add_key adjtimex bpf clock_adjtime clock_settime delete_module fanotify_init fanotify_mark finit_module
    get_mempolicy init_module ioperm iopl kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages
    modify_ldt move_pages nfsservctl open_by_handle_at perf_event_open quotactl quotactl_fd reboot request_key
    set_mempolicy set_mempolicy_home_node settimeofday stime swapoff swapon syslog uselib userfaultfd ustat
    vhangup""")

# Absent on purpose, so that they answer ENOSYS and programs fall back: io_uring_*, clone3 (when not nested).

assert not ALLOWED & (NAMESPACES | REFUSED)
assert not NAMESPACES & REFUSED
