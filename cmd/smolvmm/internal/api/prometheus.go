package api

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/client"
)

// promType is Prometheus's text format 0.0.4.
const promType = "text/plain; version=0.0.4; charset=utf-8"

func (s *Server) getMetrics(*call) (any, error) { return rawText{promType, s.prometheus()}, nil }

// page is the text of metrics under way.
type page struct{ bytes.Buffer }

// family begins a metric; its samples follow.
func (p *page) family(name, kind, help string) {
	fmt.Fprintf(p, "# HELP smolvmm_%s %s\n# TYPE smolvmm_%s %s\n", name, help, name, kind)
}

// sample adds a value; labels are name and value in turn.
func (p *page) sample(name string, value float64, labels ...string) {
	p.WriteString("smolvmm_" + name)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		p.WriteByte(sep)
		p.WriteString(labels[i] + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		p.WriteByte('}')
	}
	p.WriteByte(' ')
	p.Write(strconv.AppendFloat(nil, value, 'g', -1, 64))
	p.WriteByte('\n')
}

// one is a metric of one sample.
func (p *page) one(name, kind, help string, value float64, labels ...string) {
	p.family(name, kind, help)
	p.sample(name, value, labels...)
}

func (s *Server) prometheus() []byte {
	p := &page{}
	u := s.proc.read()
	s.mu.Lock()
	state, started := s.state, s.started
	s.mu.Unlock()
	p.one("info", "gauge", "What this machine is; always 1.", 1, "name", s.cfg.ID, "image", s.cfg.Image, "version", s.cfg.Version)
	p.family("state", "gauge", "1 for the state that the machine is in.")
	for _, st := range []client.State{client.NotStarted, client.Running, client.Paused, client.Ended} {
		v := 0.0
		if st == state {
			v = 1
		}
		p.sample("state", v, "state", strings.ReplaceAll(strings.ToLower(string(st)), " ", "_"))
	}
	if !started.IsZero() {
		p.one("start_time_seconds", "gauge", "When the guest was started, in seconds since 1970.", float64(started.UnixMilli())/1000)
		p.one("uptime_seconds", "gauge", "For how long the guest has been running; pauses count.", time.Since(started).Seconds())
	}
	p.family("cpu_seconds_total", "counter", "Processor time: of the whole process, and what the kernel counts as the guest's.")
	p.sample("cpu_seconds_total", u.cpu.Seconds(), "of", "process")
	p.sample("cpu_seconds_total", u.guest.Seconds(), "of", "guest")
	p.family("resident_bytes", "gauge", "Memory of the process in RAM, and the guest's pages among it.")
	p.sample("resident_bytes", float64(u.resident), "of", "process")
	p.sample("resident_bytes", float64(u.shared), "of", "guest")
	p.one("threads", "gauge", "Threads of the process.", float64(u.threads))
	p.one("goroutines", "gauge", "Goroutines of the process.", float64(runtime.NumGoroutine()))
	p.family("api_requests_total", "counter", "Requests on the socket, and connections that were turned away, by why.")
	for _, c := range []struct {
		what string
		n    uint64
	}{
		{"requests", s.counters.requests.Load()}, {"refused", s.counters.refused.Load()}, {"strangers", s.counters.strangers.Load()},
		{"crowded", s.counters.crowded.Load()}, {"slow", s.counters.slow.Load()},
	} {
		p.sample("api_requests_total", float64(c.n), "result", c.what)
	}
	if m, egress, ok := s.metricsOf(); ok {
		p.machine(m)
		p.egress(egress)
	}
	return p.Bytes()
}

func (p *page) machine(m vmm.Metrics) {
	p.one("memory_bytes", "gauge", "Memory that the guest was given.", float64(m.Memory))
	p.family("vcpu_exits_total", "counter", "Returns from the guest to the monitor, by kind.")
	for i, v := range m.VCPUs {
		for _, k := range []struct {
			kind string
			n    uint64
		}{
			{"io_in", v.IOIn}, {"io_out", v.IOOut}, {"mmio_read", v.MMIORead}, {"mmio_write", v.MMIOWrite},
			{"interrupted", v.Interrupted}, {"other", v.Other},
		} {
			p.sample("vcpu_exits_total", float64(k.n), "vcpu", strconv.Itoa(i), "kind", k.kind)
		}
	}
	p.family("vcpu_unclaimed_total", "counter", "Accesses that no device answered.")
	for i, v := range m.VCPUs {
		p.sample("vcpu_unclaimed_total", float64(v.Unclaimed), "vcpu", strconv.Itoa(i))
	}
	p.family("interrupts_total", "counter", "Interrupts that a device raised.")
	for i, d := range m.Disks {
		p.sample("interrupts_total", float64(d.Interrupts), "device", "disk"+strconv.Itoa(i))
	}
	for i, n := range m.Nets {
		p.sample("interrupts_total", float64(n.Interrupts), "device", "net"+strconv.Itoa(i))
	}
	if m.Vsock != nil {
		p.sample("interrupts_total", float64(m.Vsock.Interrupts), "device", "vsock")
	}
	p.disks(m.Disks)
	p.nets(m.Nets)
	if m.Vsock != nil {
		p.vsock(m.Vsock.VsockStats)
	}
}

func (p *page) disks(disks []vmm.DiskMetrics) {
	if len(disks) == 0 {
		return
	}
	each := func(f func(disk, op string, c vmm.DiskCount, l vmm.DiskLatency)) {
		for i, d := range disks {
			n := strconv.Itoa(i)
			f(n, "read", d.Read, d.Latencies.Read)
			f(n, "write", d.Write, d.Latencies.Write)
			f(n, "flush", d.Flush, d.Latencies.Flush)
			f(n, "discard", d.Discard, d.Latencies.Discard)
			f(n, "write_zeroes", d.WriteZeroes, d.Latencies.WriteZeroes)
		}
	}
	p.family("disk_requests_total", "counter", "Requests of a disk's queue, failed or not.")
	each(func(disk, op string, c vmm.DiskCount, _ vmm.DiskLatency) {
		p.sample("disk_requests_total", float64(c.Requests), "disk", disk, "queue", "0", "op", op)
	})
	p.family("disk_bytes_total", "counter", "Bytes of requests that succeeded.")
	each(func(disk, op string, c vmm.DiskCount, _ vmm.DiskLatency) {
		p.sample("disk_bytes_total", float64(c.Bytes), "disk", disk, "queue", "0", "op", op)
	})
	p.family("disk_errors_total", "counter", "Requests that the host could not do.")
	each(func(disk, op string, c vmm.DiskCount, _ vmm.DiskLatency) {
		p.sample("disk_errors_total", float64(c.Errors), "disk", disk, "op", op)
	})
	p.family("disk_refused_total", "counter", "Requests that broke the rules, or that this disk does not know.")
	for i, d := range disks {
		p.sample("disk_refused_total", float64(d.Malformed), "disk", strconv.Itoa(i), "reason", "malformed")
		p.sample("disk_refused_total", float64(d.Unsupported), "disk", strconv.Itoa(i), "reason", "unsupported")
	}
	p.family("disk_request_seconds", "histogram", "How long requests took, from the ring to their end.")
	limits := vmm.DiskLatencyLimits()
	each(func(disk, op string, c vmm.DiskCount, l vmm.DiskLatency) {
		if c.Requests == 0 {
			return
		}
		sum := uint64(0)
		for i, n := range l.Took {
			sum += n
			le := "+Inf"
			if i < len(limits) {
				le = strconv.FormatFloat(limits[i], 'g', -1, 64)
			}
			p.sample("disk_request_seconds_bucket", float64(sum), "disk", disk, "op", op, "le", le)
		}
		p.sample("disk_request_seconds_sum", l.Total.Seconds(), "disk", disk, "op", op)
		p.sample("disk_request_seconds_count", float64(sum), "disk", disk, "op", op)
	})
}

func (p *page) nets(nets []vmm.NetMetrics) {
	if len(nets) == 0 {
		return
	}
	each := func(name string, f func(q vmm.NetPairStats) (tx, rx uint64)) {
		for i, n := range nets {
			for q, c := range n.Pairs {
				tx, rx := f(c)
				p.sample(name, float64(tx), "interface", strconv.Itoa(i), "queue", strconv.Itoa(q), "direction", "tx")
				p.sample(name, float64(rx), "interface", strconv.Itoa(i), "queue", strconv.Itoa(q), "direction", "rx")
			}
		}
	}
	p.family("net_frames_total", "counter", "Frames that passed: tx from the guest, rx to it.")
	each("net_frames_total", func(q vmm.NetPairStats) (uint64, uint64) { return q.TXFrames, q.RXFrames })
	p.family("net_bytes_total", "counter", "Bytes of those frames, Ethernet headers included.")
	each("net_bytes_total", func(q vmm.NetPairStats) (uint64, uint64) { return q.TXBytes, q.RXBytes })
	p.family("net_dropped_total", "counter", "Frames that did not pass, by why.")
	for i, n := range nets {
		for _, w := range []struct {
			direction, reason string
			n                 uint64
		}{
			{"tx", "malformed", n.TX.Malformed}, {"tx", "oversized", n.TX.Oversized}, {"tx", "link_down", n.TX.LinkDown},
			{"rx", "malformed", n.RX.Malformed}, {"rx", "oversized", n.RX.Oversized}, {"rx", "link_down", n.RX.LinkDown},
			{"rx", "filtered", n.Filtered},
		} {
			p.sample("net_dropped_total", float64(w.n), "interface", strconv.Itoa(i), "direction", w.direction, "reason", w.reason)
		}
	}
	p.family("net_waits_total", "counter", "Times that frames waited: for the rate limit, or for buffers of the guest's.")
	for i, n := range nets {
		p.sample("net_waits_total", float64(n.TX.Throttled), "interface", strconv.Itoa(i), "direction", "tx", "reason", "rate")
		p.sample("net_waits_total", float64(n.RX.Throttled), "interface", strconv.Itoa(i), "direction", "rx", "reason", "rate")
		p.sample("net_waits_total", float64(n.Starved), "interface", strconv.Itoa(i), "direction", "rx", "reason", "buffers")
	}
}

func (p *page) vsock(v vmm.VsockStats) {
	p.one("vsock_connections", "gauge", "Connections now.", float64(v.Connections))
	p.one("vsock_buffered_bytes", "gauge", "Bytes of the guest's that the host has not taken yet.", float64(v.Buffered))
	for _, f := range []struct {
		name, help, label string
		samples           []vsockSample
	}{
		{"vsock_connections_total", "Connections that were begun, by whom.", "by", []vsockSample{{"guest", v.Opened}, {"host", v.Called}}},
		{"vsock_packets_total", "Packets that passed: tx from the guest, rx to it.", "direction", []vsockSample{{"tx", v.FromGuest.Packets}, {"rx", v.ToGuest.Packets}}},
		{"vsock_bytes_total", "Bytes of payload in those packets.", "direction", []vsockSample{{"tx", v.FromGuest.Bytes}, {"rx", v.ToGuest.Bytes}}},
		{"vsock_ended_total", "Connections that the device did not take, or reset.", "why", []vsockSample{{"refused", v.Refused}, {"reset", v.Resets}}},
		{"vsock_dropped_total", "Packets that broke the rules, and buffers of no use, by why.", "reason",
			[]vsockSample{{"malformed", v.Malformed}, {"spoofed", v.Spoofed}, {"violation", v.Violations}, {"buffer", v.BadBuffers}}},
	} {
		p.family(f.name, "counter", f.help)
		for _, s := range f.samples {
			p.sample(f.name, float64(s.n), f.label, s.value)
		}
	}
	p.one("vsock_waits_total", "counter", "Times that the guest had no buffer for what was there for it.", float64(v.Starved))
}

// vsockSample is a label's value and a count.
type vsockSample struct {
	value string
	n     uint64
}

// egress are the network's counters as it names them.
func (p *page) egress(interfaces []map[string]uint64) {
	if len(interfaces) == 0 {
		return
	}
	p.family("network_total", "counter", "What became of packets behind an interface, by what happened.")
	for i, counters := range interfaces {
		var names []string
		for n := range counters {
			names = append(names, n)
		}
		slices.Sort(names)
		for _, n := range names {
			p.sample("network_total", float64(counters[n]), "interface", strconv.Itoa(i), "what", n)
		}
	}
}

// ServeMetrics answers GET /metrics, and nothing else, on a listener of the
// loopback's, until Close.
func (s *Server) ServeMetrics(l net.Listener) {
	h := s.newHTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout))
		switch {
		case !ofLoopback(r.Host):
			// A page of a browser's whose name leads here has no business.
			http.Error(w, "this address is asked by its own name only", http.StatusForbidden)
		case r.URL.Path != "/metrics":
			http.Error(w, "only /metrics is here", http.StatusNotFound)
		case r.Method != http.MethodGet:
			http.Error(w, "metrics are to GET", http.StatusMethodNotAllowed)
		default:
			w.Header().Set("Content-Type", promType)
			_, _ = w.Write(s.prometheus())
		}
	}))
	g := &crowd{Listener: l, s: s, slots: make(chan struct{}, maxScrapers)}
	s.tasks.Go(func() { _ = h.Serve(g) })
	s.tasks.Go(func() {
		<-s.ctx.Done()
		h.Close()
	})
}

// ofLoopback says whether a Host header names the loopback.
func ofLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.IsLoopback()
}

// Loopback refuses an address for ServeMetrics that others could reach.
func Loopback(addr string) error {
	a, err := netip.ParseAddrPort(addr)
	if err != nil || !a.Addr().IsLoopback() {
		return fmt.Errorf("must be an address of the loopback with a port, as 127.0.0.1:9100 or [::1]:9100")
	}
	return nil
}
