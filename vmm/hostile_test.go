package vmm_test

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
)

var hostileEach = flag.Bool("hostile-each", false, "TestHostile also tries each case in a machine of its own")

// ownMemory gives this process's private memory in bytes, guest RAM aside, which
// is shared memory.
func ownMemory(t *testing.T) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	f := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindSubmatch(b)
	if f == nil {
		t.Fatal("no RssAnon in /proc/self/status")
	}
	kib, err := strconv.ParseUint(string(f[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// What a hostile guest may cost its monitor.
const (
	hostileMemory = 64 << 20 // bytes; with the race detector's share
	hostileLog    = 64 << 10 // bytes
)

// hostile runs a guest that breaks the rules and returns its report.
func hostile(t *testing.T, mode string, cpus int) string {
	t.Helper()
	cfg, out := demoConfig(t, mode)
	cfg.CPUs = cpus
	cfg.Disks = []vmm.Disk{{Path: scratch(t, 16<<20)}}
	said := newConsole()
	cfg.Log = slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	memory, goroutines := ownMemory(t), runtime.NumGoroutine()
	exit := run(t, cfg)
	if now := ownMemory(t); now > memory+hostileMemory {
		t.Errorf("the monitor grew from %d to %d KiB", memory>>10, now>>10)
	}
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > goroutines; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
		}
	}
	if n := len(said.String()); n > hostileLog {
		t.Errorf("%d bytes of log, which begin with\n%s", n, said.String()[:4096])
	}
	if exit.End != vmm.EndExit || exit.Status != 0 || strings.Contains(out.String(), "FAIL") {
		t.Errorf("%v %s\n%s", exit, exit.Registers, out)
	}
	return out.String()
}

// TestHostile: whatever a guest does to a device, the monitor lives, stays
// small and quiet, and the guest is told, as it checks itself.
func TestHostile(t *testing.T) {
	var names []string
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("all, %d CPUs", cpus), func(t *testing.T) {
			before := ownMemory(t)
			out := hostile(t, "hostile=all", cpus)
			names = nil
			for _, f := range regexp.MustCompile(`demo: (?:ok|skip) hostile name=(\S+)`).FindAllStringSubmatch(out, -1) {
				names = append(names, f[1])
			}
			skipped := strings.Count(out, "demo: skip hostile")
			t.Logf("%d cases, %d skipped; the monitor's memory went from %d to %d KiB", len(names), skipped, before>>10, ownMemory(t)>>10)
			if len(names) < 80 || cpus > 1 && skipped > 0 {
				t.Errorf("%d cases, %d skipped:\n%s", len(names), skipped, out)
			}
		})
	}
	for seed := range 3 {
		t.Run(fmt.Sprintf("random, seed %d", seed), func(t *testing.T) {
			hostile(t, fmt.Sprintf("hostile=random,pokes=20000,seed=%d", seed+100), 2)
		})
	}
	if !*hostileEach {
		return
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			out := hostile(t, "hostile="+name, 2)
			if !strings.Contains(out, "demo: ok hostile name="+name+" ") {
				t.Errorf("the case was not run:\n%s", out)
			}
		})
	}
}
