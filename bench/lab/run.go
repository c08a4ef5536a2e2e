package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/bench/lab/internal/image"
	"github.com/smolvmm/smolvmm/bench/lab/internal/kernels"
	"github.com/smolvmm/smolvmm/bench/lab/internal/wire"
)

// timeoutError is the end by -timeout.
type timeoutError struct{ msg string }

func (e timeoutError) Error() string { return e.msg }

// dumpTime is what a program gets after -timeout to answer SIGQUIT, by which a Go program prints its goroutines.
const dumpTime = 3 * time.Second

// runLab boots a lab, runs args in it and returns the program's exit status. An error is the lab's own.
func runLab(o *options, args []string, stdout, stderr *os.File) (int, error) {
	begin := time.Now()
	qemu, _, err := kernels.CheckQEMU()
	if err != nil {
		return 0, err
	}
	cache, err := kernels.CacheDir()
	if err != nil {
		return 0, err
	}
	k, err := kernels.Find(cache, o.kernel)
	if err != nil {
		return 0, err
	}
	if o.memory < 256 || o.cpus < 1 || o.cpus > 64 {
		return 0, fmt.Errorf("-m %d -cpus %d: a lab has 256 MiB or more and 1 to 64 CPUs", o.memory, o.cpus)
	}
	var drives []string
	for _, d := range o.drives {
		// An absolute path is nothing else to QEMU; "nbd:…" or "json:…" would be.
		d, err := filepath.Abs(d)
		if err != nil {
			return 0, err
		}
		if _, err := os.Stat(d); err != nil {
			return 0, fmt.Errorf("-drive: %w", err)
		}
		drives = append(drives, d)
	}
	tree, outs, err := buildGuest(o, k, args, sameFile(stdout, stderr), stderr)
	if err != nil {
		return 0, err
	}
	// The archive and what the kernel unpacks from it are in memory at the same time.
	if need := 2*tree.Size()>>20 + 192; need > int64(o.memory) {
		return 0, fmt.Errorf("%d MiB of files do not fit in -m %d: at least -m %d is needed (or a -drive)", tree.Size()>>20, o.memory, need)
	}
	initrd, err := writeInitrd(tree)
	if err != nil {
		return 0, err
	}
	defer initrd.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socketpair: %w", err)
	}
	port, theirs := os.NewFile(uintptr(pair[0]), "lab port"), os.NewFile(uintptr(pair[1]), "lab port")
	defer port.Close()
	defer theirs.Close()

	v := &vm{
		kernel: k.ImagePath(), initrd: "/proc/self/fd/3", portFD: 4,
		memory: o.memory, cpus: o.cpus, drives: drives, kernelArgs: o.kernelArgs,
	}
	r := &running{o: o, port: port, stdout: stdout, stderr: stderr, outs: outs, begin: begin, started: make(chan struct{})}
	cmd := exec.Command(qemu, v.args()...)
	cmd.ExtraFiles = []*os.File{initrd, theirs}
	cmd.Stdout, cmd.Stderr = &r.console, &r.qemuErr
	if o.verbose {
		cmd.Stdout = io.MultiWriter(&r.console, stderr)
	}
	// A process group of its own keeps the terminal's Ctrl-C for us; the death signal follows the starting thread.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(sigs)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("starting QEMU: %w", err)
	}
	theirs.Close()
	dead := make(chan struct{})
	var qemuEnd error
	go func() {
		qemuEnd = cmd.Wait()
		close(dead)
	}()
	status, err := r.wait(sigs, dead)
	_ = cmd.Process.Kill()
	<-dead
	if errors.Is(err, errQEMU) {
		err = r.whyEnded(qemuEnd)
	}
	if o.verbose {
		fmt.Fprintf(stderr, "lab: %v in all\n", time.Since(begin).Round(time.Millisecond))
	}
	return status, err
}

// running is a lab from its start to its end.
type running struct {
	o              *options
	port           *os.File
	stdout, stderr io.Writer
	outs           []outPath
	begin          time.Time
	console        tail
	qemuErr        tail
	started        chan struct{} // closed when the program starts
}

// errQEMU says that QEMU ended before the program did.
var errQEMU = errors.New("QEMU ended")

type result struct {
	status int
	err    error
}

// wait sees the lab to its end: the program's, QEMU's, the time's, or the second signal's.
func (r *running) wait(sigs <-chan os.Signal, dead <-chan struct{}) (int, error) {
	done := make(chan result, 1)
	go func() {
		status, err := r.frames()
		done <- result{status, err}
	}()
	w := wire.NewWriter(r.port)
	timeout := time.After(r.o.timeout)
	beats := time.NewTicker(beatTime)
	defer beats.Stop()
	var grace <-chan time.Time
	signalled := 0
	for {
		select {
		case res := <-done:
			if grace != nil && !errors.Is(res.err, errQEMU) {
				return 0, r.timedOut()
			}
			if errors.Is(res.err, errQEMU) {
				<-dead // its exit status and last words belong to the message
			}
			return res.status, res.err
		case <-timeout:
			grace = time.After(dumpTime)
			if !r.hasStarted() || w.Frame(wire.Signal, []byte{byte(syscall.SIGQUIT)}) != nil {
				return 0, r.timedOut()
			}
		case <-grace:
			return 0, r.timedOut()
		case s := <-sigs:
			n := int(s.(syscall.Signal))
			if signalled++; signalled > 1 || !r.hasStarted() || w.Frame(wire.Signal, []byte{byte(n)}) != nil {
				return 128 + n, nil
			}
		case <-beats.C:
			if r.hasStarted() {
				r.beat()
			}
		}
	}
}

// beatTime is how often the lab is interrupted. QEMU 10.0's VMRUN and #VMEXIT change a
// CPU's pending interrupts without the lock under which its timers set them, so now and
// then one is forgotten; the next one makes up for it, which in a lab that waits for
// nothing but that timer never came. No more often than that, as each interrupt from
// outside is a chance for the other fault that defaultCPUs tells of.
const beatTime = time.Second

// beatRoom is what beats may take of the socket's room, in bytes as the kernel counts them.
const beatRoom = 64 << 10

// beat sends an interrupt. A lab that does not read has enough of them under way, and a
// signal that it is to be sent finds room behind them.
func (r *running) beat() {
	n, err := unix.IoctlGetInt(int(r.port.Fd()), unix.SIOCOUTQ)
	if err == nil && n < beatRoom {
		_ = wire.NewWriter(r.port).Frame(wire.Beat, nil)
	}
}

func (r *running) hasStarted() bool {
	select {
	case <-r.started:
		return true
	default:
		return false
	}
}

func (r *running) timedOut() error {
	what := "the program was still running"
	if !r.hasStarted() {
		what = "the program had not started"
	}
	return timeoutError{fmt.Sprintf("timeout: %s after %v (-timeout)%s", what, r.o.timeout, r.console.lines("; the console's end:"))}
}

// whyEnded makes the message for a QEMU that ended too early.
func (r *running) whyEnded(end error) error {
	state := "exit status 0"
	if end != nil {
		state = end.Error()
	}
	if msg := r.qemuErr.firstError(); msg != "" && !r.hasStarted() {
		return fmt.Errorf("QEMU ended (%s): %s%s", state, msg, r.console.lines("; the console's end:"))
	}
	if p := r.console.panicLine(); p != "" {
		state = p
	}
	return fmt.Errorf("the lab's machine ended before the program did (%s)%s", state, r.console.lines("; the console's end:"))
}

// frames carries the program's output to its end.
func (r *running) frames() (int, error) {
	in := wire.NewReader(r.port)
	var out *io.PipeWriter
	var outDone chan error
	defer func() {
		if out != nil {
			out.CloseWithError(io.ErrUnexpectedEOF)
		}
	}()
	mark := 0
	for {
		k, p, err := in.Frame()
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET):
			return 0, errQEMU
		case err != nil:
			return 0, fmt.Errorf("the init's port: %w", err)
		}
		switch k {
		case wire.Started:
			if r.hasStarted() {
				return 0, errors.New("the init started twice")
			}
			close(r.started)
			mark = r.console.total()
			if r.o.verbose {
				fmt.Fprintf(r.stderr, "lab: the program starts at %v\n", time.Since(r.begin).Round(time.Millisecond))
			}
		case wire.Stdout:
			if _, err := r.stdout.Write(p); err != nil {
				return 0, fmt.Errorf("standard output: %w", err)
			}
		case wire.Stderr:
			if _, err := r.stderr.Write(p); err != nil {
				return 0, fmt.Errorf("standard error: %w", err)
			}
		case wire.Out:
			if out == nil {
				var pr *io.PipeReader
				pr, out = io.Pipe()
				outDone = make(chan error, 1)
				go func() {
					err := unpackOut(pr, r.outs)
					pr.CloseWithError(err)
					outDone <- err
				}()
			}
			if _, err := out.Write(p); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				return 0, fmt.Errorf("bringing files back: %w", err)
			}
		case wire.Fail:
			return 0, fmt.Errorf("%s", strings.TrimSpace(string(p)))
		case wire.Ended:
			if out != nil {
				out.Close()
				if err := <-outDone; err != nil {
					return 0, fmt.Errorf("bringing files back: %w", err)
				}
				out = nil
			}
			var e wire.Exit
			if err := json.Unmarshal(p, &e); err != nil {
				return 0, fmt.Errorf("the init's last frame: %w", err)
			}
			return r.ended(e, mark), nil
		default:
			return 0, fmt.Errorf("the init sent a frame of kind %d", k)
		}
	}
}

// ended turns the program's end into a status, and shows what the kernel said meanwhile if it ended badly.
func (r *running) ended(e wire.Exit, mark int) int {
	status := e.Code
	if e.Signal != 0 {
		status = 128 + e.Signal
		fmt.Fprintf(r.stderr, "lab: the program was ended by signal %d (%v)\n", e.Signal, syscall.Signal(e.Signal))
	}
	if status != 0 && !r.o.verbose {
		if said := r.console.since(mark); len(bytes.TrimSpace(said)) > 0 {
			fmt.Fprintf(r.stderr, "lab: the kernel said meanwhile:\n%s", said)
		}
	}
	return status
}

// writeInitrd writes the archive to memory, where nothing has to be removed afterwards.
func writeInitrd(t *image.Tree) (*os.File, error) {
	fd, err := unix.MemfdCreate("lab-initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "lab-initramfs")
	if err := t.Write(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sameFile says whether both streams go to one place, as under go test.
func sameFile(a, b *os.File) bool {
	fa, errA := a.Stat()
	fb, errB := b.Stat()
	return errA == nil && errB == nil && os.SameFile(fa, fb)
}
