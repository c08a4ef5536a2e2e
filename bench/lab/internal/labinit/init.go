// Package labinit is the process 1 of the lab's guest: it makes a small but true Linux around one program, runs it, and
// hands its output and its end to the runner over a virtio-serial port.
package labinit

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/bench/lab/internal/wire"
)

// IsInit says whether this process is the lab's init: the lab's own binary is in its initramfs under that name.
func IsInit() bool { return os.Getpid() == 1 && os.Args[0] == "/init" }

// Main does not return. What fails before the port is open goes to the console, and the end of process 1 makes the
// kernel panic, which ends QEMU: the runner then shows the console.
func Main() {
	if err := boot(); err != nil {
		fmt.Fprintln(os.Stderr, "lab init:", err)
		os.Exit(1)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func boot() error {
	b, err := os.ReadFile(wire.SpecPath)
	if err != nil {
		return err
	}
	var spec wire.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("%s: %w", wire.SpecPath, err)
	}
	if err := mountAll(wire.GuestRoot); err != nil {
		return err
	}
	shortSlices()
	var modErr error
	for _, m := range spec.Modules {
		if err := loadModule(m); err != nil {
			// Told over the port, if the modules the port needs are there; the console has it in any case.
			modErr = errors.Join(modErr, fmt.Errorf("kernel module %s: %w", strings.TrimSuffix(filepath.Base(m), ".ko"), err))
			fmt.Fprintln(os.Stderr, "lab init:", modErr)
		}
	}
	port, err := openPort(filepath.Join(wire.GuestRoot, "dev"))
	if err != nil {
		return err
	}
	l := &link{port: port, w: wire.NewWriter(port), bye: make(chan struct{})}
	err = modErr
	if err == nil {
		err = settle(wire.GuestRoot)
	}
	if err == nil {
		err = l.serve(&spec)
	}
	if err != nil {
		msg := err.Error()
		if err := l.w.Frame(wire.Fail, []byte(msg[:min(len(msg), wire.MaxPayload)])); err != nil {
			return err
		}
	}
	l.listen()
	<-l.bye
	return nil
}

// mountAll mounts the kernel's file systems below root.
func mountAll(root string) error {
	// The initramfs is a tmpfs limited to half of memory: the program may use more.
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT, "size=90%"); err != nil {
		return fmt.Errorf("remount /: %w", err)
	}
	for _, m := range []struct {
		kind, dir, opts string
		perm            fs.FileMode
	}{
		{"proc", "proc", "", 0o755},
		{"sysfs", "sys", "", 0o755},
		{"devtmpfs", "dev", "mode=0755", 0o755},
		{"devpts", "dev/pts", "gid=5,mode=620,ptmxmode=666", 0o755},
		{"tmpfs", "dev/shm", "mode=1777", 0o1777},
		{"tmpfs", "run", "mode=0755", 0o755},
		{"cgroup2", "sys/fs/cgroup", "", 0o755},
	} {
		dir := filepath.Join(root, m.dir)
		if err := os.MkdirAll(dir, m.perm); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, dir, m.kind, 0, m.opts); err != nil {
			return fmt.Errorf("mount %s: %w", m.kind, err)
		}
	}
	for _, l := range [][2]string{{"/proc/self/fd", "fd"}, {"fd/0", "stdin"}, {"fd/1", "stdout"}, {"fd/2", "stderr"}} {
		if err := os.Symlink(l[0], filepath.Join(root, "dev", l[1])); err != nil {
			return err
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// openPort waits for the port's node, which the driver makes after an exchange with the device, and opens it. Port 0
// is reserved for a console, so the only other one is 1.
func openPort(dev string) (*os.File, error) {
	in, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(in)
	if _, err := unix.InotifyAddWatch(in, dev, unix.IN_CREATE); err != nil {
		return nil, err
	}
	for {
		names, err := filepath.Glob(filepath.Join(dev, "vport*p1"))
		if err != nil {
			return nil, err
		}
		if len(names) > 0 {
			return os.OpenFile(names[0], os.O_RDWR, 0)
		}
		var buf [4096]byte
		if _, err := unix.Read(in, buf[:]); err != nil && err != unix.EINTR {
			return nil, err
		}
	}
}

// settle brings up what a program expects of a machine and makes root its root.
func settle(root string) error {
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := unix.Sethostname([]byte("lab")); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	// The kernel's own limit is 4096; this is a Debian system's. The syscall package must be told, or it restores the old one.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1024, Max: 512 << 10}); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	for _, n := range []string{"kvm", "net/tun", "vhost-net", "vhost-vsock"} {
		if err := os.Chmod(filepath.Join(root, "dev", n), 0o666); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// A bind mount of the folder moved over / gives the program a root that is an ordinary mount, so that pivot_root
	// and mount namespaces work in it; they do not in the initramfs itself.
	if err := unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", root, err)
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s over /: %w", root, err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// link is the init's end of the port.
type link struct {
	port io.Reader
	w    *wire.Writer
	once sync.Once
	pid  atomic.Int32  // the program, while it runs
	bye  chan struct{} // closed when the runner wants the machine off, or has gone
}

// listen begins to read the runner's frames, which makes sense only once the port has taken a frame: before the runner
// is connected, a read says end of file.
func (l *link) listen() {
	l.once.Do(func() {
		go func() {
			defer close(l.bye)
			r := wire.NewReader(l.port)
			for {
				k, p, err := r.Frame()
				if err != nil || k == wire.Bye {
					return
				}
				if pid := l.pid.Load(); k == wire.Signal && len(p) == 1 && pid != 0 {
					_ = unix.Kill(-int(pid), unix.Signal(p[0]))
				}
			}
		}()
	})
}

// serve runs the program to its end and reports it. Its error says that the program could not be run.
func (l *link) serve(spec *wire.Spec) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	var copies sync.WaitGroup
	pipe := func(k wire.Kind) (*os.File, error) {
		r, pw, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		copies.Go(func() {
			defer r.Close()
			_, _ = io.CopyBuffer(l.w.Stream(k), r, make([]byte, wire.MaxPayload))
		})
		return pw, nil
	}
	stdout, err := pipe(wire.Stdout)
	if err != nil {
		return err
	}
	defer stdout.Close()
	stderr := stdout
	if !spec.Merge {
		if stderr, err = pipe(wire.Stderr); err != nil {
			return err
		}
		defer stderr.Close()
	}
	if err := l.w.Frame(wire.Started, nil); err != nil {
		return err
	}
	pid, err := syscall.ForkExec(spec.Path, spec.Args, &syscall.ProcAttr{
		Dir:   spec.Dir,
		Env:   spec.Env,
		Files: []uintptr{null.Fd(), stdout.Fd(), stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("%s in %s: %w", spec.Path, spec.Dir, err)
	}
	l.pid.Store(int32(pid))
	l.listen()
	ws, err := reap(pid)
	l.pid.Store(0)
	if err != nil {
		return err
	}
	stdout.Close()
	stderr.Close()
	// What the program left running may hold the pipes open: it ends here, as it would with the machine.
	_ = unix.Kill(-1, unix.SIGKILL)
	if _, err := reap(-1); err != unix.ECHILD {
		return err
	}
	copies.Wait()
	if err := sendOut(spec.Out, l.w.Stream(wire.Out)); err != nil {
		return err
	}
	e := wire.Exit{Code: ws.ExitStatus()}
	if ws.Signaled() {
		e.Signal = int(ws.Signal())
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return l.w.Frame(wire.Ended, b)
}

// reap waits for children until pid has ended, or until there are none.
func reap(pid int) (unix.WaitStatus, error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case got == pid:
			return ws, nil
		}
	}
}

// sendOut writes the files and folders named as a tar archive, leaving out what is not there.
func sendOut(paths []string, w io.Writer) error {
	if len(paths) == 0 {
		return nil
	}
	tw := tar.NewWriter(w)
	for _, root := range paths {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			fi, err := d.Info()
			if err != nil || (!fi.Mode().IsRegular() && !fi.IsDir()) {
				return err
			}
			h, err := tar.FileInfoHeader(fi, "")
			if err != nil {
				return err
			}
			h.Name = path
			if err := tw.WriteHeader(h); err != nil || fi.IsDir() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.CopyN(tw, f, fi.Size())
			return err
		})
		if err != nil {
			return fmt.Errorf("handing back %s: %w", root, err)
		}
	}
	return tw.Close()
}
