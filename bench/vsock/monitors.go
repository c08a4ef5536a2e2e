package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
)

// Names in the tables.
const (
	nameOurs = figures.Ours
	nameFC   = "Firecracker"
)

// The guest's size, its CID, and what its kernel is told. Whoever boots it, the
// console is the serial port, and says little: each of its bytes is an exit.
const (
	guestMiB  = 256
	guestCID  = 3
	guestArgs = "console=ttyS0 root=none panic=-1 tsc=reliable mitigations=off cryptomgr.notests quiet guest=streams"
)

// Names of what is in the folder of files.
const (
	fileOurs   = "smolvmm"
	fileKernel = "vmlinux"
	fileInitrd = "initrd"
)

// monitor is a program that runs the guest with its vsock behind a Unix socket of
// Firecracker's convention.
type monitor struct {
	name string
	// argv runs the guest of the folder files. What else it needs, and the socket,
	// is in dir.
	argv func(files, dir string) ([]string, error)
}

// socket is the one in a monitor's folder.
func socket(dir string) string { return filepath.Join(dir, "v.sock") }

func smolvmm(files, dir string) ([]string, error) {
	return []string{
		filepath.Join(files, fileOurs), "-kernel", filepath.Join(files, fileKernel), "-initrd", filepath.Join(files, fileInitrd),
		"-acpi", "-net", "none", "-m", fmt.Sprint(guestMiB), "-vsock", fmt.Sprintf("%d,%s", guestCID, socket(dir)), "-append", guestArgs,
	}, nil
}

// firecracker gives the command line of a program, whose configuration is a file.
func firecracker(program string) func(files, dir string) ([]string, error) {
	type m = map[string]any
	return func(files, dir string) ([]string, error) {
		b, err := json.Marshal(m{
			"boot-source":    m{"kernel_image_path": filepath.Join(files, fileKernel), "initrd_path": filepath.Join(files, fileInitrd), "boot_args": guestArgs},
			"machine-config": m{"vcpu_count": 1, "mem_size_mib": guestMiB},
			"drives":         []m{},
			"vsock":          m{"guest_cid": guestCID, "uds_path": socket(dir)},
		})
		if err != nil {
			return nil, err
		}
		file := filepath.Join(dir, "config.json")
		return []string{program, "--no-api", "--level", "Error", "--config-file", file}, os.WriteFile(file, b, 0o600)
	}
}

// readyLine is the guest's word that its services are there.
const readyLine = "guest: ok ready"

// maxConsole bounds what is kept of what a machine says; the last is.
const maxConsole = 64 << 10

// console keeps what a monitor and its guest say.
type console struct {
	mu    sync.Mutex
	text  []byte
	ready chan struct{} // closed at the guest's word
	once  sync.Once
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	if strings.Contains(string(c.text), readyLine) {
		c.once.Do(func() { close(c.ready) })
	}
	if over := len(c.text) - maxConsole; over > 0 {
		c.text = append(c.text[:0], c.text[over:]...)
	}
	return len(p), nil
}

// last are the last lines in one.
func (c *console) last(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines []string
	for line := range strings.Lines(string(c.text)) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// machine is a guest whose services are there.
type machine struct {
	console *console
	stop    context.CancelFunc
	gone    chan error
	socket  string
}

// endLimit is what a monitor that is asked to end has for it.
const endLimit = 5 * time.Second

// start runs a monitor's guest and waits for its services, so long at most. dir is
// an empty folder.
func start(ctx context.Context, m monitor, files, dir string, limit time.Duration) (*machine, error) {
	argv, err := m.argv(files, dir)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(syscall.SIGTERM) }, endLimit
	r := &machine{console: &console{ready: make(chan struct{})}, stop: stop, gone: make(chan error, 1), socket: socket(dir)}
	cmd.Stdout, cmd.Stderr = r.console, r.console
	if err := cmd.Start(); err != nil {
		stop()
		return nil, err
	}
	go func() { r.gone <- cmd.Wait() }()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-r.console.ready:
		return r, nil
	case err = <-r.gone:
		r.gone <- err
		err = fmt.Errorf("it ended (%v) before its guest was ready", err)
	case <-late.C:
		err = fmt.Errorf("its guest was not ready after %v", limit)
	case <-ctx.Done():
		err = ctx.Err()
	}
	r.end()
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	return nil, fmt.Errorf("%w; its last words: %s", err, r.console.last(8))
}

// end ends the machine, whatever it does.
func (r *machine) end() {
	r.stop()
	<-r.gone
}
