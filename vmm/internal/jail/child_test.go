package jail

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// children are what a child process can be told to do; an error is a failure.
var children = map[string]func(arg string) error{
	"work": work, "idle": idle, "refused": refused, "landlock": landlocked,
	"deadly": dieOf, "log": logged, "trap": trapped, "twice": twice, "sleep": slept, "time": timed, "bench": benchmark,
	"network": networked,
}

// work keeps the runtime as busy as it gets: garbage, threads, timers, pollable
// files, signals, panics, for long enough that sysmon and the scavenger have
// been at work too.
func work(arg string) error {
	m := map[string]Machine{"none": {}, "stdio": {Console: ConsoleStdio},
		"full": {Console: ConsoleSocket, API: true, BlockDevices: true, Network: true}}[arg]
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	if err := Apply(Config{Mode: Enforce, Groups: Strict(m)}); err != nil {
		return err
	}
	sig := make(chan os.Signal, 8)
	signal.Notify(sig, unix.SIGUSR1)
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGUSR1); err != nil {
		return fmt.Errorf("a signal to itself: %w", err)
	}
	<-sig
	signal.Stop(sig)

	// On a host with one slow processor the loops below would leave the garbage
	// collector, for which the main goroutine waits, hardly a turn.
	runtime.GOMAXPROCS(max(4, runtime.NumCPU()))
	ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	var rounds atomic.Int64
	for range 40 {
		wg.Go(func() {
			for ctx.Err() == nil {
				var keep [][]byte
				for i := range 64 {
					keep = append(keep, make([]byte, 1<<(i%17)))
				}
				runtime.KeepAlive(keep)
				rounds.Add(1)
				time.Sleep(time.Microsecond)
			}
		})
	}
	for range 4 { // threads that end with their goroutines
		wg.Go(func() {
			for ctx.Err() == nil {
				done := make(chan struct{})
				go func() {
					defer close(done)
					runtime.LockOSThread() // never unlocked: the thread exits
					ts := unix.Timespec{Nsec: 1000}
					_ = unix.Nanosleep(&ts, nil)
				}()
				<-done
			}
		})
	}
	wg.Go(func() { // the poller
		buf := make([]byte, 16)
		for ctx.Err() == nil {
			if _, err := r.Read(buf); err != nil {
				return
			}
		}
	})
	for ctx.Err() == nil {
		debug.FreeOSMemory()
		if _, err := w.Write([]byte("x")); err != nil {
			return err
		}
		func() {
			defer func() { _ = recover() }()
			var p *int
			*p = 1
		}()
	}
	w.Close()
	wg.Wait()
	runtime.KeepAlive(r) // a collected one would break the pipe early
	if rounds.Load() == 0 {
		return errors.New("no work was done")
	}
	runtime.GOMAXPROCS(1)
	runtime.GOMAXPROCS(4)
	runtime.SetDefaultGOMAXPROCS()
	return nil
}

const idleThreads = 5

func threads(n int) []*thread {
	ts := make([]*thread, n)
	for i := range ts {
		ts[i] = newThread()
	}
	return ts
}

func idle(string) error {
	early := threads(idleThreads)
	if err := Apply(everything()); err != nil {
		return err
	}
	late := threads(idleThreads)
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent closes it
	runtime.KeepAlive(early)
	runtime.KeepAlive(late)
	return nil
}

// refused makes each refused call on threads of before and after.
func refused(string) error {
	dev, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	null := dev.Fd()
	early := threads(3)
	if err := Apply(everything()); err != nil {
		return err
	}
	all := append(early, threads(3)...)
	var bad []string
	for _, c := range refusedCalls(null) {
		for i, th := range all {
			th.run(func() {
				if _, _, errno := unix.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], 0, 0); errno != c.want {
					bad = append(bad, fmt.Sprintf("%s on thread %d: %v, want %v", c.name, i, errno, c.want))
				}
			})
		}
	}
	if bad != nil {
		return errors.New(strings.Join(bad, "\n"))
	}
	if _, err := os.Open("/etc/passwd"); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("os.Open: %v", err)
	}
	fmt.Printf("%d calls on %d threads\n", len(refusedCalls(null)), len(all))
	return nil
}

type rawCall struct {
	name string
	nr   uintptr
	args [4]uintptr
	want unix.Errno
}

// refusedCalls are those with an errno, next to some that the tables let
// through to the kernel, which finds fault with their descriptor.
func refusedCalls(null uintptr) []rawCall {
	const badFD = ^uintptr(0)
	calls := []rawCall{
		{"openat", unix.SYS_OPENAT, [4]uintptr{}, unix.EPERM},
		{"openat2", unix.SYS_OPENAT2, [4]uintptr{}, unix.EPERM},
		{"open", unix.SYS_OPEN, [4]uintptr{}, unix.EPERM},
		{"creat", unix.SYS_CREAT, [4]uintptr{}, unix.EPERM},
		{"unlinkat", unix.SYS_UNLINKAT, [4]uintptr{}, unix.EPERM},
		{"rename", unix.SYS_RENAME, [4]uintptr{}, unix.EPERM},
		{"socket", unix.SYS_SOCKET, [4]uintptr{unix.AF_INET, unix.SOCK_STREAM}, unix.EPERM},
		{"socketpair", unix.SYS_SOCKETPAIR, [4]uintptr{unix.AF_UNIX, unix.SOCK_STREAM}, unix.EPERM},
		{"connect", unix.SYS_CONNECT, [4]uintptr{badFD}, unix.EPERM},
		{"sendmsg", unix.SYS_SENDMSG, [4]uintptr{badFD}, unix.EPERM},
		{"ioctl TIOCSTI", unix.SYS_IOCTL, [4]uintptr{null, unix.TIOCSTI}, unix.EPERM},
		{"ioctl KVM_CREATE_VM", unix.SYS_IOCTL, [4]uintptr{null, 0xae01}, unix.EPERM},
		{"fcntl F_DUPFD", unix.SYS_FCNTL, [4]uintptr{null, unix.F_DUPFD}, unix.EPERM},
		{"dup", unix.SYS_DUP, [4]uintptr{null}, unix.EPERM},
		{"kill init", unix.SYS_KILL, [4]uintptr{1, 0}, unix.EPERM},
		{"tgkill init", unix.SYS_TGKILL, [4]uintptr{1, 1, 0}, unix.EPERM},
		{"prctl dumpable", unix.SYS_PRCTL, [4]uintptr{unix.PR_SET_DUMPABLE, 1}, unix.EPERM},
		{"prctl a 64-bit vma", unix.SYS_PRCTL, [4]uintptr{unix.PR_SET_VMA, 1 << 32}, unix.EPERM},
		{"clone3", unix.SYS_CLONE3, [4]uintptr{}, unix.ENOSYS},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [4]uintptr{8}, unix.EPERM},
		{"userfaultfd", unix.SYS_USERFAULTFD, [4]uintptr{}, unix.EPERM},
		{"memfd_create", unix.SYS_MEMFD_CREATE, [4]uintptr{}, unix.EPERM},
		{"mremap", unix.SYS_MREMAP, [4]uintptr{}, unix.EPERM},
		{"seccomp", unix.SYS_SECCOMP, [4]uintptr{}, unix.EPERM},
		{"landlock_create_ruleset", unix.SYS_LANDLOCK_CREATE_RULESET, [4]uintptr{}, unix.EPERM},
		{"wait4", unix.SYS_WAIT4, [4]uintptr{}, unix.EPERM},
		{"a number of the future", 900, [4]uintptr{}, unix.EPERM},

		{"ioctl KVM_RUN", unix.SYS_IOCTL, [4]uintptr{badFD, 0xae80}, unix.EBADF},
		{"ioctl TCGETS", unix.SYS_IOCTL, [4]uintptr{badFD, unix.TCGETS}, unix.EBADF},
		{"ioctl BLKDISCARD", unix.SYS_IOCTL, [4]uintptr{badFD, unix.BLKDISCARD}, unix.EBADF},
		{"fdatasync", unix.SYS_FDATASYNC, [4]uintptr{badFD}, unix.EBADF},
		{"accept4", unix.SYS_ACCEPT4, [4]uintptr{badFD}, unix.EBADF},
		{"tgkill of no thread", unix.SYS_TGKILL, [4]uintptr{uintptr(os.Getpid()), 1, 0}, unix.ESRCH},
	}
	return calls
}

// landlocked lets openat through the filter: Landlock alone stands then.
func landlocked(string) error {
	early := threads(3)
	c := everything()
	c.ExtraSyscalls = []uint32{unix.SYS_OPENAT, unix.SYS_MKDIRAT, unix.SYS_UNLINKAT}
	if err := Apply(c); err != nil {
		return err
	}
	for i, th := range append(early, threads(3)...) {
		var bad error
		th.run(func() {
			for _, path := range []string{"/dev/null", "/", "/proc/self/mem"} {
				if fd, err := unix.Open(path, unix.O_RDONLY, 0); !errors.Is(err, unix.EACCES) {
					bad = fmt.Errorf("thread %d: opened %s as %d, %v", i, path, fd, err)
				}
			}
			if err := unix.Mkdirat(unix.AT_FDCWD, "/tmp/a-directory-that-must-not-be", 0o700); !errors.Is(err, unix.EACCES) {
				bad = fmt.Errorf("thread %d: mkdir: %v", i, err)
			}
		})
		if bad != nil {
			return bad
		}
	}
	return nil
}

// deadly are calls that must end the process.
var deadly = map[string]rawCall{
	"mmap-exec":      {nr: unix.SYS_MMAP, args: [4]uintptr{0, 4096, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS}},
	"mmap-file":      {nr: unix.SYS_MMAP, args: [4]uintptr{0, 4096, unix.PROT_READ, unix.MAP_SHARED}},
	"mprotect-exec":  {nr: unix.SYS_MPROTECT, args: [4]uintptr{0, 4096, unix.PROT_EXEC}},
	"clone-process":  {nr: unix.SYS_CLONE, args: [4]uintptr{uintptr(unix.SIGCHLD)}},
	"clone-newuser":  {nr: unix.SYS_CLONE, args: [4]uintptr{goClone | unix.CLONE_NEWUSER}},
	"execve":         {nr: unix.SYS_EXECVE},
	"execveat":       {nr: unix.SYS_EXECVEAT},
	"ptrace":         {nr: unix.SYS_PTRACE},
	"process_vm":     {nr: unix.SYS_PROCESS_VM_WRITEV},
	"unshare":        {nr: unix.SYS_UNSHARE},
	"setuid":         {nr: unix.SYS_SETUID},
	"bpf":            {nr: unix.SYS_BPF},
	"x32-getpid":     {nr: x32Bit | unix.SYS_GETPID},
	"x32-execve":     {nr: x32Bit | 520},
	"mount":          {nr: unix.SYS_MOUNT},
	"open_by_handle": {nr: unix.SYS_OPEN_BY_HANDLE_AT},
}

func dieOf(arg string) error {
	name, where, _ := strings.Cut(arg, "/")
	c, ok := deadly[name]
	if !ok {
		return fmt.Errorf("no call %q", name)
	}
	var th *thread
	if where == "early" {
		th = newThread()
	}
	if err := Apply(everything()); err != nil {
		return err
	}
	die := func() { unix.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], 0, 0) }
	switch {
	case where == "late":
		newThread().run(die)
	case th != nil:
		th.run(die)
	default:
		die()
	}
	return nil
}

func logged(string) error {
	c := everything()
	c.Mode = Log
	if err := Apply(c); err != nil {
		return err
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		return fmt.Errorf("log mode refused: %w", err)
	}
	return f.Close()
}

func trapped(string) error {
	c := everything()
	c.Mode = Trap
	if err := Apply(c); err != nil {
		return err
	}
	_, err := os.Open("/dev/null")
	return fmt.Errorf("went on: %v", err)
}

func twice(string) error {
	if err := Apply(everything()); err != nil {
		return err
	}
	if err := Apply(everything()); err == nil {
		return errors.New("a second jail was taken")
	}
	return nil
}

// slept uses the first timer of the process under the jail: the runtime throws
// when it cannot make its poller then.
func slept(string) error {
	if err := Apply(everything()); err != nil {
		return err
	}
	time.Sleep(time.Millisecond)
	return nil
}

func timed(arg string) error {
	c := everything()
	var err error
	if c.Mode, err = ParseMode(arg); err != nil {
		return err
	}
	ts := threads(8)
	start := time.Now()
	if err := Apply(c); err != nil {
		return err
	}
	fmt.Println(time.Since(start).Nanoseconds())
	runtime.KeepAlive(ts)
	return nil
}

func benchmark(arg string) error {
	mode, call, _ := strings.Cut(arg, "/")
	c := everything()
	var err error
	if c.Mode, err = ParseMode(mode); err != nil {
		return err
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	if err := Apply(c); err != nil {
		return err
	}
	const n = 300_000
	one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	start := time.Now()
	for range n {
		switch call {
		case "write": // an eventfd, as a doorbell has
			_, _ = unix.Write(fd, one)
		case "kvmrun": // the filter's way to KVM_RUN, without a vCPU behind it
			_, _, _ = unix.RawSyscall(unix.SYS_IOCTL, ^uintptr(0), 0xae80, 0)
		}
	}
	fmt.Println(float64(time.Since(start).Nanoseconds()) / n)
	return nil
}
