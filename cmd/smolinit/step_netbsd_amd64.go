package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/builder/runvm/steplog"
	"github.com/smolvmm/smolvmm/builder/toolbox/devnodes"
)

// stepMounts are what a step has besides its image: nothing that hides a directory
// which the image may want to fill.
var stepMounts = []Mount{
	{Type: "kernfs", Target: "/kern"},
	{Type: "procfs", Target: "/proc"},
	{Type: "ptyfs", Target: "/dev/pts"},
}

// step runs the command as a step in the making of an image and tells the host
// what it has said and changed. Whatever smolinit does to the image itself it does
// before the first look at it.
func (s *system) step(it *items) int {
	w, err := s.openLog()
	if err != nil {
		s.notef("the disk for the step's log: %v", err)
		return statusInit
	}
	r := s.runStep(w, it)
	if r.Error != "" {
		s.notef("%s", r.Error)
		r.Status = statusInit
	}
	if err := report(w, r); err != nil {
		s.notef("the step's report: %v", err)
		return statusInit
	}
	return r.Status
}

func (s *system) runStep(w *steplog.Writer, it *items) (r steplog.Result) {
	fail := func(what string, err error) steplog.Result {
		return steplog.Result{Error: what + ": " + err.Error()}
	}
	if err := s.tidy(); err != nil {
		return fail("preparing the image", err)
	}
	own := stepMounts
	if len(it.secrets) > 0 {
		if err := os.MkdirAll(secretsDir, 0o755); err != nil {
			return fail("secrets", err)
		}
		own = append([]Mount{{Type: "tmpfs", Target: secretsDir, Mode: 0o755}}, own...)
	}
	s.mountAll(own)
	resolver := noteOwn(resolvFile)
	s.identity()
	mine := resolver()
	if err := s.stage(it); err != nil {
		return fail("preparing the step", err)
	}
	image := rootFiles("/")
	before, err := take(image)
	if err != nil {
		return fail("looking at the image before the step", err)
	}

	null, err := os.Open("/dev/null")
	if err != nil {
		return fail("running the step", err)
	}
	out, in, err := os.Pipe()
	if err != nil {
		return fail("running the step", err)
	}
	type copied struct {
		lost int64
		err  error
	}
	done := make(chan copied, 1)
	go func() {
		lost, err := copyOutput(w, out, s.cfg.Build.Output)
		done <- copied{lost, err}
	}()
	var start error
	r.Status, start = s.supervise(s.cfg.Argv, []uintptr{null.Fd(), in.Fd(), in.Fd()})
	if start != nil {
		r.Start = start.Error()
	}
	in.Close()
	// Every process is gone, but for one that not even SIGKILL ends.
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case c := <-done:
		r.Lost = c.lost
		if c.err != nil {
			return fail("the step's output", c.err)
		}
	case <-timer.C:
		return steplog.Result{Error: "a process of the step cannot be ended and keeps its output open"}
	}
	if r.Status != 0 {
		return r
	}
	if r.Skipped, err = sendChanges(w, image, before, mine); err != nil {
		return fail("reading what the step changed", err)
	}
	return r
}

// tidy takes what the host needed for the boot out of the image, and makes the
// links that the step has.
func (s *system) tidy() error {
	b := s.cfg.Build
	if b.Init != "" {
		if err := os.Rename(b.Init, "/sbin/init"); err != nil {
			return err
		}
	}
	for _, p := range b.Remove {
		if err := os.Remove(p); err != nil {
			return err
		}
	}
	for name, target := range b.Links {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, name); errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("the image has a file %s, where a secret is to be", name)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// openLog opens the raw disk by a node of its own, which is gone again at once.
func (s *system) openLog() (*steplog.Writer, error) {
	const path = "/.smolinit.log"
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(node{major: devnodes.CharLD, minor: s.cfg.Build.Log}.dev())); err != nil {
		return nil, &fs.PathError{Op: "mknod", Path: path, Err: err}
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: fmt.Sprintf("disk %d,%d", devnodes.CharLD, s.cfg.Build.Log), Err: err}
	}
	// Whole pages: the kernel locks them for each transfer.
	buf, err := unix.Mmap(-1, 0, steplog.MaxPayload+steplog.HeaderSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	mark := func() {
		runtime.LockOSThread() // the command's output comes on any thread
		defer runtime.UnlockOSThread()
		if err := s.ports(func(p ports) { p.out8(portMark, steplog.Mark) }); err != nil {
			s.notef("%v", err)
		}
	}
	return steplog.NewWriter(rawDisk(fd), s.cfg.Build.Size, buf, mark), nil
}

// rawDisk is a character device of a disk: a write is on the disk when it returns.
type rawDisk int

func (d rawDisk) WriteAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		w, err := unix.Pwrite(int(d), p[n:], off+int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return n, err
		case w == 0:
			return n, io.ErrShortWrite
		default:
			n += w
		}
	}
	return len(p), nil
}
