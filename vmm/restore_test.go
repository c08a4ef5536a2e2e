package vmm_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
)

// TestRestoreCanBeTriedAgain: a state outlives a Restore that fails, and leaves
// no file open when it is gone.
func TestRestoreCanBeTriedAgain(t *testing.T) {
	cfg, out := demoConfig(t, "count")
	cfg.Disks = []vmm.Disk{{Path: scratch(t, 16<<20), Overlay: true}}
	before := openFiles(t)
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan vmm.Exit, 1)
	go func() {
		e, _ := m.Run(context.Background())
		ran <- e
	}()
	at := out.wait(t, `demo: count [^\n]*\n`, 0)
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
	<-ran
	for _, c := range []struct {
		name string
		edit func(*vmm.Config)
	}{
		{"CPUs", func(c *vmm.Config) { c.CPUs = 2 }},
		{"memory", func(c *vmm.Config) { c.Memory *= 2 }},
		{"disks", func(c *vmm.Config) { c.Disks = nil }},
		{"kind of disk", func(c *vmm.Config) { c.Disks = []vmm.Disk{{Path: cfg.Disks[0].Path}} }},
	} {
		bad := cfg
		c.edit(&bad)
		var ce *vmm.ConfigError
		if _, err := vmm.Restore(bad, s); !errors.As(err, &ce) {
			t.Fatalf("other %s: %v, want a ConfigError", c.name, err)
		}
	}
	if m, err = vmm.Restore(cfg, s); err != nil {
		t.Fatal(err)
	}
	go func() {
		e, _ := m.Run(context.Background())
		ran <- e
	}()
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	out.wait(t, `demo: count [^\n]*\n`, max(at, len(out.String())))
	if _, err := vmm.Restore(cfg, s); err == nil {
		t.Error("one state gave two machines")
	}
	if err := errors.Join(m.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	<-ran
	if n := openFiles(t); n != before {
		t.Errorf("%d open files, %d before", n, before)
	}
}

// TestStuckTrace: a trace that nobody takes does not hold a machine up.
func TestStuckTrace(t *testing.T) {
	cfg, _ := demoConfig(t, "print=65536")
	r, w := io.Pipe()
	defer r.Close()
	cfg.Trace = w
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if e, err := m.Run(ctx); err != nil || e.End != vmm.EndExit {
		t.Errorf("%v, %v", e, err)
	}
	if err := m.Close(); err == nil || !strings.Contains(err.Error(), "trace") {
		t.Errorf("Close says %v: lines were lost", err)
	}
}

// TestTrace: a line an exit, by the device's name.
func TestTrace(t *testing.T) {
	cfg, _ := demoConfig(t, "hello")
	var b strings.Builder
	cfg.Trace = &b
	run(t, cfg)
	for _, want := range []string{"vcpu0 io write 0x502 (mark) 1 bytes 01\n", "(com1)", "write 0x501 (exit) 1 bytes 00\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in the trace:\n%s", want, b.String())
		}
	}
}

// TestMissingHugePages: too few huge pages are an error of New, not a SIGBUS of
// the guest.
func TestMissingHugePages(t *testing.T) {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil || !strings.Contains(string(info), "HugePages_Free:        0\n") {
		t.Skip("NOT RUN: the host has huge pages to give, or does not say")
	}
	cfg, _ := demoConfig(t, "hello")
	cfg.Pages = vmm.PagesReserved
	if m, err := vmm.New(cfg); err == nil {
		m.Close()
		t.Error("a machine without its memory was made")
	} else if !strings.Contains(err.Error(), "nr_hugepages") {
		t.Errorf("%v does not say what to do", err)
	}
}
