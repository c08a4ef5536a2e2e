package vmm

import (
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/smolvmm/smolvmm/vmm/internal/bus"
	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

const (
	// traceLines is how many lines wait for a slow writer before more are lost.
	traceLines = 4096
	// traceFlush is how long the end of a machine waits for the writer.
	traceFlush = time.Second
	// traceBytes is how much of a write's data a line shows.
	traceBytes = 16
)

// tracer writes a line for every exit from a goroutine of its own: a writer
// that is stuck costs lines, which are counted, never a vCPU.
type tracer struct {
	w           io.Writer
	ports, mmio *bus.Bus
	lines       chan string
	lost        atomic.Uint64
	done        chan struct{}
}

func newTracer(w io.Writer, ports, mmio *bus.Bus) *tracer {
	t := &tracer{w: w, ports: ports, mmio: mmio, lines: make(chan string, traceLines), done: make(chan struct{})}
	go func() {
		defer close(t.done)
		for l := range t.lines {
			_, _ = io.WriteString(t.w, l)
		}
		if n := t.lost.Load(); n > 0 {
			_, _ = fmt.Fprintf(t.w, "trace: %d lines lost: the writer was too slow\n", n)
		}
	}()
	return t
}

// exit is told of each exit before it is served. It shows what the guest wrote,
// never what it is about to read: that could be a secret from fw_cfg.
func (t *tracer) exit(vcpu int, reason kvm.ExitReason, addr uint64, data []byte, write bool) {
	dir, space := "read", t.ports
	if write {
		dir = "write"
	}
	if reason == kvm.ExitMMIO {
		space = t.mmio
	}
	name := "nobody"
	if r := space.Find(addr, 1); r != nil {
		name = r.Name
	}
	var b strings.Builder
	fmt.Fprintf(&b, "vcpu%d %v %s %#x (%s) %d bytes", vcpu, reason, dir, addr, name, len(data))
	if write {
		fmt.Fprintf(&b, " % x", data[:min(len(data), traceBytes)])
	}
	b.WriteByte('\n')
	select {
	case t.lines <- b.String():
	default:
		t.lost.Add(1)
	}
}

// close is called when no vCPU runs any more. It waits for the writer, within
// reason: one that is stuck for good keeps the goroutine.
func (t *tracer) close() error {
	close(t.lines)
	select {
	case <-t.done:
		return nil
	case <-time.After(traceFlush):
		return fmt.Errorf("trace: the writer is stuck: lines are lost")
	}
}
