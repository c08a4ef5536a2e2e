package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
)

// TestHundred: a hundred machines at once are started, listed, spoken to and
// stopped, and leave nothing: file, process or descriptor.
func TestHundred(t *testing.T) {
	if testing.Short() || os.Getenv("SMOLVMM_TEST_HUNDRED") == "" {
		t.Skip("takes half a minute: SMOLVMM_TEST_HUNDRED=100 runs it")
	}
	count, err := strconv.Atoi(os.Getenv("SMOLVMM_TEST_HUNDRED"))
	if err != nil || count < 1 || count > 1000 {
		t.Fatalf("SMOLVMM_TEST_HUNDRED: a number from 1 to 1000, %v", err)
	}
	y := newYard(t)
	before := openFiles(t)
	began := time.Now()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8) // as many starts at a time
	for i := range count {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			r := clitest.Finish(t, y.run("netecho", "-d", "--name", fmt.Sprintf("m%03d", i), "-p", "0:7/udp"))
			if r.Status != 0 {
				t.Errorf("m%03d: %+v", i, r)
			}
		})
	}
	wg.Wait()
	t.Logf("%d started in %v", count, time.Since(began).Round(time.Millisecond))
	began = time.Now()
	vs := y.ps()
	t.Logf("ps of %d in %v", len(vs), time.Since(began).Round(time.Millisecond))
	if len(vs) != count {
		t.Fatalf("%d are listed", len(vs))
	}
	began = time.Now()
	var resident uint64
	pids := map[int]bool{}
	for i, v := range vs {
		if v.State != machines.Running || !v.Ready {
			t.Errorf("%+v", v)
		}
		resident += v.Used
		pids[v.PID] = true
		addr, _, _ := strings.Cut(v.Ports[0], "->")
		wg.Go(func() { speak(t, addr, fmt.Sprintf("hello %d", i)) })
	}
	wg.Wait()
	if len(pids) != count {
		t.Errorf("%d processes", len(pids))
	}
	t.Logf("all spoken to in %v; %d MiB resident, shared pages counted by each", time.Since(began).Round(time.Millisecond), resident>>20)
	began = time.Now()
	var names []string
	for _, v := range vs {
		names = append(names, v.Name)
	}
	for part := range 8 {
		wg.Go(func() {
			for i := part; i < len(names); i += 8 {
				y.do("stop", names[i])
			}
		})
	}
	wg.Wait()
	t.Logf("stopped in %v", time.Since(began).Round(time.Millisecond))
	if vs := y.ps(); len(vs) != 0 {
		t.Errorf("still there: %+v", vs)
	}
	for pid := range pids {
		if err := syscall.Kill(pid, 0); err == nil {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && bytes.HasPrefix(b, []byte(machineName)) {
				t.Errorf("process %d is still there: %q", pid, b)
			}
		}
	}
	if out := y.do("cleanup", "--all"); strings.Count(out, "\n") != count {
		t.Errorf("cleanup removed %d", strings.Count(out, "\n"))
	}
	y.empty()
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors, before there were %d", after, before)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

// speak sends a datagram until its echo comes.
func speak(t testing.TB, addr, text string) {
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	buf := make([]byte, 100)
	for range 50 {
		_, _ = io.WriteString(c, text)
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := c.Read(buf); err == nil && string(buf[:n]) == text {
			return
		}
	}
	t.Errorf("%s does not answer", addr)
}
