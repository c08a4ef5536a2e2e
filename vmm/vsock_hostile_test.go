package vmm_test

import (
	"net"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
)

// TestHostileVsock: packets, floods and buffers against the rules, with a host that
// listens and reads nothing.
func TestHostileVsock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.sock")
	l, err := net.Listen("unix", path+"_1024")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	cfg, out := demoConfig(t, "hostile=vsock,ms=200")
	cfg.Vsock = &vmm.Vsock{CID: 3, Path: path}
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
	if exit.End != vmm.EndExit || exit.Status != 0 || strings.Contains(out.String(), "FAIL") {
		t.Errorf("%v\n%s", exit, out)
	}
	if n := len(regexp.MustCompile(`demo: ok hostile name=vsock-`).FindAllString(out.String(), -1)); n < 35 {
		t.Errorf("%d cases:\n%s", n, out)
	}
}
