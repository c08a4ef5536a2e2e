package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/demo"
)

// result is a good boot.
type result struct {
	CPUs int           `json:"cpus"`
	Took time.Duration `json:"took"` // from nothing to nothing
}

// plan is a boot to be made.
type plan struct {
	n, cpus int
	status  int      // that the guest is to end with
	argv    []string // of the guest's command, NetBSD
	disk    string
	tmp     string // a folder for the boot's temporary files
}

// plan gives boot n its number of CPUs and, in NetBSD, its status: each second
// one of the CPUs' turns ends with 7.
func (o *options) plan(n int, dir string) plan {
	b := plan{n: n, cpus: o.cpus[n%len(o.cpus)], disk: o.disk, tmp: filepath.Join(dir, "tmp")}
	if o.guest == guestNetBSD {
		b.status = n / len(o.cpus) % 2 * 7
		b.argv = []string{"guestcheck", "-size", "1", "-cpus", strconv.Itoa(b.cpus), "-status", strconv.Itoa(b.status)}
	}
	return b
}

// good judges what a guest said last.
func (o *options) good(b plan, status int, console string) error {
	if status != b.status {
		return fmt.Errorf("status %d, want %d", status, b.status)
	}
	word := "guestcheck: ok, status " + strconv.Itoa(b.status)
	if o.guest == guestDemo {
		word = "demo: done ok="
	}
	if !strings.Contains(console, word) {
		return fmt.Errorf("the console lacks %q", word)
	}
	if o.guest == guestDemo && !strings.Contains(console, " fail=0 ") {
		return errors.New("a check of the guest's failed")
	}
	return nil
}

// console keeps what a guest prints, up to a bound.
type console struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const maxConsole = 4 << 20 // bytes

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf.Write(p[:min(len(p), maxConsole-c.buf.Len())])
	return len(p), nil
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

var errTime = errors.New("time is up")

// bootHere makes a machine in this process and runs it to its end.
func (o *options) bootHere(ctx context.Context, b plan) (r result, err error) {
	out := &console{}
	cfg := vmm.Config{CPUs: b.cpus, ConsoleOut: out}
	if err := o.attach(&cfg, b); err != nil {
		return r, err
	}
	began := time.Now()
	m, err := vmm.New(cfg)
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The state of a guest that hangs is taken before the machine is ended.
	var hung string
	looked := make(chan struct{})
	timer := time.AfterFunc(o.timeout, func() {
		defer close(looked)
		hung = diagnose(m)
		cancel(errTime)
	})
	exit, err := m.Run(ctx)
	if !timer.Stop() {
		<-looked
	}
	timeline := m.Timeline()
	err = errors.Join(err, m.Close())
	r = result{CPUs: b.cpus, Took: time.Since(began)}
	if err == nil && exit.End != vmm.EndExit {
		err = fmt.Errorf("%v\n%s", exit, exit.Registers)
	}
	if err == nil {
		err = o.good(b, exit.Status, out.String())
	}
	if err != nil {
		err = fmt.Errorf("%w\n== timeline\n%s== console\n%s%s", err, timelineText(timeline), out, hung)
	}
	return r, err
}

// attach gives a machine its kernel and disks.
func (o *options) attach(cfg *vmm.Config, b plan) error {
	if o.guest == guestNetBSD {
		init, err := json.Marshal(map[string]any{"argv": b.argv})
		if err != nil {
			return err
		}
		item, err := vmm.NewItem("opt/smolvmm/init.json", init)
		if err != nil {
			return err
		}
		cfg.Kernel.Path, cfg.Items = o.kernel, []vmm.Item{item}
		cfg.Disks = []vmm.Disk{{Path: b.disk, Overlay: true}}
		return nil
	}
	k := demo.Kernel()
	cfg.Kernel = vmm.File{Name: "the demo guest", Data: k, Size: k.Size()}
	cfg.Cmdline, cfg.Memory = demo.Argument+o.mode, 64<<20
	for i := range 2 {
		f, err := os.CreateTemp("", "soak-*.img")
		if err != nil {
			return err
		}
		if err := errors.Join(os.Remove(f.Name()), f.Truncate(16<<20)); err != nil {
			return err
		}
		cfg.Disks = append(cfg.Disks, vmm.Disk{File: f, Serial: "soak" + strconv.Itoa(i)})
	}
	return nil
}

func timelineText(ms []vmm.Moment) string {
	var b strings.Builder
	for _, m := range ms {
		fmt.Fprintf(&b, "%10.3f ms  %s\n", float64(m.At.Sub(ms[0].At).Microseconds())/1000, m.Name)
	}
	return b.String()
}

// bootCommand runs the smolvmm command. One that hangs is aborted, so that its
// goroutines are printed.
func (o *options) bootCommand(ctx context.Context, b plan) (r result, err error) {
	if err := os.MkdirAll(b.tmp, 0o700); err != nil {
		return r, err
	}
	args := []string{"demo", "--timeline", "-cpus", strconv.Itoa(b.cpus), o.mode}
	if o.guest == guestNetBSD {
		args = append([]string{"-v", "-kernel", o.kernel, "-disk", b.disk + ",overlay", "-cpus", strconv.Itoa(b.cpus), "--"}, b.argv...)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, errTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.command, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+b.tmp, "GOTRACEBACK=all")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGABRT) }
	cmd.WaitDelay = 10 * time.Second
	out, notes := &console{}, &console{}
	cmd.Stdout, cmd.Stderr = out, notes
	began := time.Now()
	err = cmd.Run()
	r = result{CPUs: b.cpus, Took: time.Since(began)}
	var ee *exec.ExitError
	if errors.As(err, &ee) && ee.Exited() {
		err = nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err == nil {
		err = o.good(b, cmd.ProcessState.ExitCode(), out.String())
	}
	if err == nil {
		var left []os.DirEntry
		if left, err = os.ReadDir(b.tmp); err == nil && len(left) > 0 {
			err = fmt.Errorf("%d temporary files are left, such as %s", len(left), left[0].Name())
		}
	}
	if err != nil {
		err = fmt.Errorf("%w\n== standard error\n%s== console\n%s", err, notes, out)
	}
	return r, err
}
