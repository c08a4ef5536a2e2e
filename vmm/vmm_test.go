package vmm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/demo"
)

// console collects what a guest prints and lets a test wait for a line.
type console struct {
	mu   sync.Mutex
	cond *sync.Cond
	buf  bytes.Buffer
	done bool
}

func newConsole() *console {
	c := &console{}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cond.Broadcast()
	return c.buf.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// end wakes those who wait for what will not come.
func (c *console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	c.cond.Broadcast()
}

// wait blocks until the console matches re at or behind from, and gives the
// offset behind the match.
func (c *console) wait(t *testing.T, re string, from int) int {
	t.Helper()
	r := regexp.MustCompile(re)
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if loc := r.FindIndex(c.buf.Bytes()[from:]); loc != nil {
			return from + loc[1]
		}
		if c.done {
			t.Fatalf("the guest ended without printing %q:\n%s", re, c.buf.String())
		}
		c.cond.Wait()
	}
}

// needKVM skips where no machine can be made.
func needKVM(t testing.TB) {
	t.Helper()
	if _, err := vmm.ProbeKVM("/dev/kvm"); err != nil {
		t.Skipf("NOT RUN: no machine can be made here: %v", err)
	}
}

// demoConfig is a machine that runs the demo guest in a mode.
func demoConfig(t testing.TB, mode string) (vmm.Config, *console) {
	t.Helper()
	needKVM(t)
	c, k := newConsole(), demo.Kernel()
	return vmm.Config{
		Kernel:     vmm.File{Name: "demo", Data: k, Size: k.Size()},
		Cmdline:    demo.Argument + mode,
		Memory:     64 << 20,
		ConsoleOut: c,
	}, c
}

// scratch makes a sparse disk image.
func scratch(t testing.TB, size int64) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p, size); err != nil {
		t.Fatal(err)
	}
	return p
}

// run runs a machine to its end and closes it.
func run(t testing.TB, cfg vmm.Config) vmm.Exit {
	t.Helper()
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	exit, err := m.Run(ctx)
	if err := errors.Join(err, m.Close()); err != nil {
		t.Fatal(err)
	}
	return exit
}

func TestHello(t *testing.T) {
	cfg, out := demoConfig(t, "hello")
	exit := run(t, cfg)
	if exit.End != vmm.EndExit || exit.Status != 0 || !strings.Contains(out.String(), "demo: ok hello") {
		t.Fatalf("%+v\n%s", exit, out)
	}
}

// TestCheck is the guest's own examination of the whole machine.
func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*vmm.Config)
		want []string
	}{
		{"no disk", func(*vmm.Config) {}, []string{"devices found=0"}},
		{"a disk", func(c *vmm.Config) {
			c.Disks = []vmm.Disk{{Path: scratch(t, 16<<20), Serial: "first"}}
		}, []string{"blk_id dev=0 id=first", "ok blk_verify dev=0", "ok blk_flush"}},
		{"three disks", func(c *vmm.Config) {
			c.Disks = []vmm.Disk{
				{Path: scratch(t, 16<<20)}, {Path: scratch(t, 8<<20), ReadOnly: true}, {Path: scratch(t, 24<<20), Overlay: true},
			}
		}, []string{"blk dev=0", "blk dev=1", "blk dev=2", "devices found=3"}},
		{"four CPUs", func(c *vmm.Config) { c.CPUs = 4 }, []string{"mp cpus=4", "cpu n=3", "smp cpus=4"}},
		{"more than 4 GiB", func(c *vmm.Config) { c.Memory = 5 << 30 }, []string{"ok map"}},
		{"items", func(c *vmm.Config) {
			it, err := vmm.NewItem("opt/demo/greeting", []byte("good morning"))
			if err != nil {
				t.Fatal(err)
			}
			c.Items = []vmm.Item{it}
		}, []string{"good morning"}},
		{"baseline CPU", func(c *vmm.Config) { c.CPU = "baseline" }, []string{"smolvmm baseline"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, out := demoConfig(t, "check")
			c.edit(&cfg)
			exit := run(t, cfg)
			if exit.End != vmm.EndExit || exit.Status != 0 {
				t.Errorf("%v %s\n%s", exit, exit.Registers, out)
			}
			for _, w := range c.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("the guest did not print %q:\n%s", w, out)
				}
			}
		})
	}
}

func TestEndings(t *testing.T) {
	for _, c := range []struct {
		mode   string
		end    vmm.EndKind
		status int
	}{
		{"exit=0", vmm.EndExit, 0}, {"exit=7", vmm.EndExit, 7}, {"exit=255", vmm.EndExit, 255},
		{"reboot=kbd", vmm.EndReboot, 0}, {"reboot=cf9", vmm.EndReboot, 0}, {"reboot=p92", vmm.EndReboot, 0},
		{"triple", vmm.EndTripleFault, 0},
		{"badop", vmm.EndInternalError, 0},
		{"mmioabsent", vmm.EndExit, 0},
	} {
		t.Run(c.mode, func(t *testing.T) {
			cfg, out := demoConfig(t, c.mode)
			exit := run(t, cfg)
			if exit.End != c.end || exit.Status != c.status {
				t.Fatalf("%+v, want %v status %d\n%s", exit, c.end, c.status, out)
			}
			if faulted := c.end == vmm.EndTripleFault || c.end == vmm.EndInternalError; faulted != strings.Contains(exit.Registers, "rip=") {
				t.Errorf("registers: %q", exit.Registers)
			}
		})
	}
}

// TestCancel: a guest that never ends does so with its context, also one that
// spins without an exit.
func TestCancel(t *testing.T) {
	for _, mode := range []string{"hlt", "spin"} {
		t.Run(mode, func(t *testing.T) {
			cfg, _ := demoConfig(t, mode)
			m, err := vmm.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			cause := errors.New("enough")
			ctx, cancel := context.WithCancelCause(context.Background())
			time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
			exit, err := m.Run(ctx)
			if err != nil || exit.End != vmm.EndStopped || !errors.Is(exit.Cause, cause) {
				t.Fatalf("%+v, %v", exit, err)
			}
			if _, err := m.Run(context.Background()); err == nil {
				t.Error("a machine ran twice")
			}
		})
	}
}

// TestCloseWhileRunning: Close is enough to end everything.
func TestCloseWhileRunning(t *testing.T) {
	cfg, out := demoConfig(t, "spin")
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan vmm.Exit, 1)
	go func() {
		e, _ := m.Run(context.Background())
		ended <- e
	}()
	out.wait(t, "demo: ", 0)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if e := <-ended; e.End != vmm.EndStopped {
		t.Errorf("%+v", e)
	}
	if err := m.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestConfigErrors(t *testing.T) {
	needKVM(t)
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("not a kernel at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	k := demo.Kernel()
	good := vmm.File{Name: "demo", Data: k, Size: k.Size()}
	for _, c := range []struct {
		cfg  vmm.Config
		want string
	}{
		{vmm.Config{}, "no kernel"},
		{vmm.Config{Kernel: vmm.File{Path: "/nonexistent/netbsd"}}, "/nonexistent/netbsd"},
		{vmm.Config{Kernel: vmm.File{Path: t.TempDir()}}, "not a regular file"},
		{vmm.Config{Kernel: vmm.File{Path: garbage}}, garbage},
		{vmm.Config{Kernel: good, CPUs: 33}, "between 1 and 32"},
		{vmm.Config{Kernel: good, CPUs: -1}, "between 1 and 32"},
		{vmm.Config{Kernel: good, Memory: 12345678}, "multiple of 4096"},
		{vmm.Config{Kernel: good, Memory: 65 << 30}, "64 GiB"},
		{vmm.Config{Kernel: good, CPU: "z80"}, "z80"},
		{vmm.Config{Kernel: good, Cmdline: "virtio_mmio.device=4K@0xfeb00000:5"}, "virtio_mmio.device"},
		{vmm.Config{Kernel: good, Cmdline: strings.Repeat("x", 5000)}, "5"},
		{vmm.Config{Kernel: good, Disks: []vmm.Disk{{Path: "/nonexistent/img"}}}, "/nonexistent/img"},
		{vmm.Config{Kernel: good, Disks: make([]vmm.Disk, 30)}, "30 disks"},
		{vmm.Config{Kernel: good, Initrds: []vmm.File{{Path: "/nonexistent/rd"}}}, "/nonexistent/rd"},
		{vmm.Config{Kernel: good, Memory: 1 << 20}, "MiB"},
	} {
		m, err := vmm.New(c.cfg)
		if m != nil {
			m.Close()
		}
		var ce *vmm.ConfigError
		if !errors.As(err, &ce) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want a ConfigError with %q", c.cfg, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("not one line: %q", err)
		}
	}
}

// openFiles counts the process's descriptors.
func openFiles(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// TestNothingIsLeft: machines that ran, failed to be built or never ran leave
// neither files, mappings of guest RAM nor goroutines.
func TestNothingIsLeft(t *testing.T) {
	disk := scratch(t, 8<<20)
	once := func() {
		cfg, _ := demoConfig(t, "hello")
		cfg.CPUs = 2
		cfg.Disks = []vmm.Disk{{Path: disk}, {Path: scratch(t, 8<<20), Overlay: true}}
		run(t, cfg)
		if m, err := vmm.New(cfg); err != nil {
			t.Fatal(err)
		} else if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		cfg.Disks = append(cfg.Disks, vmm.Disk{Path: "/nonexistent/img"})
		if _, err := vmm.New(cfg); err == nil {
			t.Fatal("a missing disk passed")
		}
	}
	once() // what the runtime opens for good, it has now
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for range 5 {
		once()
	}
	// A goroutine that has given back all it had may not have been reaped yet.
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > goroutines && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, %d before:\n%s", n, goroutines, buf[:runtime.Stack(buf, true)])
	}
	if n := openFiles(t); n != files {
		t.Errorf("%d open files, %d before", n, files)
	}
	if ram := guestRAM(t); ram.mappings != 0 {
		t.Error("guest RAM is still mapped")
	}
}

// TestManyCPUs shows each of 32 processors at work by a counter of its own.
func TestManyCPUs(t *testing.T) {
	cfg, out := demoConfig(t, "smp")
	cfg.CPUs = 32
	exit := run(t, cfg)
	if exit.End != vmm.EndExit || exit.Status != 0 {
		t.Fatalf("%v\n%s", exit, out)
	}
	counts := regexp.MustCompile(`cpu n=(\d+) apic=\d+ count=([1-9]\d*)`).FindAllStringSubmatch(out.String(), -1)
	seen := map[string]bool{}
	for _, c := range counts {
		seen[c[1]] = true
	}
	if len(seen) != 32 {
		t.Errorf("%d processors counted:\n%s", len(seen), out)
	}
}

// TestPrint: a long output arrives whole.
func TestPrint(t *testing.T) {
	cfg, out := demoConfig(t, "print=65536")
	if exit := run(t, cfg); exit.End != vmm.EndExit || exit.Status != 0 {
		t.Fatalf("%v", exit)
	}
	if n := len(out.String()); n < 1<<16 || n > 1<<16+4096 {
		t.Errorf("%d bytes arrived", n)
	}
}

// TestPauseAndMove: a guest that counts and writes its disk goes on after a
// pause, and in a new machine made from its state over the same memory.
func TestPauseAndMove(t *testing.T) {
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d CPUs", cpus), func(t *testing.T) {
			cfg, out := demoConfig(t, "count")
			cfg.CPUs = cpus
			if cpus > 1 {
				cfg.Pages = vmm.PagesShared
			}
			cfg.Disks = []vmm.Disk{{Path: scratch(t, 16<<20)}}
			m, err := vmm.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			start := func(m *vmm.Machine) (wait func() vmm.Exit) {
				done := make(chan vmm.Exit, 1)
				go func() {
					e, err := m.Run(context.Background())
					if err != nil {
						t.Error(err)
					}
					done <- e
				}()
				return func() vmm.Exit { return <-done }
			}
			progress := `demo: count [^\n]*\n`
			wait := start(m)
			at := out.wait(t, progress, 0)
			if err := m.Pause(); err != nil {
				t.Fatal(err)
			}
			if err := m.Resume(); err != nil {
				t.Fatal(err)
			}
			at = out.wait(t, progress, max(at, len(out.String())))
			for range 3 {
				if err := m.Pause(); err != nil {
					t.Fatal(err)
				}
				s, err := m.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				if e := wait(); e.End != vmm.EndStopped {
					t.Fatalf("%+v", e)
				}
				at = len(out.String())
				if m, err = vmm.Restore(cfg, s); err != nil {
					t.Fatal(err)
				}
				wait = start(m)
				if err := m.Resume(); err != nil {
					t.Fatal(err)
				}
				at = out.wait(t, progress+"(?s:.*)"+progress, at)
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			wait()
			if strings.Contains(out.String(), "FAIL") {
				t.Error(out.String())
			}
		})
	}
}
