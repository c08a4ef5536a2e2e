package api

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm"
)

// sink is a file or named pipe that lines are put into. A pipe that nobody
// empties holds nothing up: its lines are lost, and counted.
type sink struct {
	path string

	mu   sync.Mutex
	fd   int // -1: closed
	lost uint64
}

// openSink opens a path for appending. A named pipe is opened for reading too, so
// that there need not be a reader yet, as Firecracker does.
func openSink(path string) (*sink, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0o600)
	if err != nil {
		return nil, badf("%.256q: %w.", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, badf("%.256q: %w.", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFCHR:
		return &sink{path: path, fd: fd}, nil
	}
	unix.Close(fd)
	return nil, badf("%.256q: must be a file or a named pipe.", path)
}

// Write puts all of p in or loses it.
func (k *sink) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fd < 0 {
		return 0, os.ErrClosed
	}
	for {
		n, err := unix.Write(k.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || n < len(p):
			k.lost++
			return len(p), nil
		}
		return n, nil
	}
}

func (k *sink) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fd >= 0 {
		unix.Close(k.fd)
		k.fd = -1
	}
}

// flushEvery is how often the metrics are written without being asked for,
// Firecracker's own interval.
const flushEvery = time.Minute

func (s *Server) putMetrics(c *call) (any, error) {
	var m metricsSink
	if err := c.need(&m, "metrics_path"); err != nil {
		return nil, err
	}
	return s.configure(func(*Spec) error {
		if s.sink != nil {
			return badf("Reinitialization of metrics not allowed.")
		}
		k, err := openSink(m.Path)
		if err != nil {
			return err
		}
		s.sink = k
		s.tasks.Go(func() {
			t := time.NewTicker(flushEvery)
			defer t.Stop()
			for {
				select {
				case <-t.C:
					_ = s.flushMetrics(false)
				case <-s.ctx.Done():
					return
				}
			}
		})
		return nil
	})
}

// flushMetrics writes a line. Asked for, it is an error that there is nowhere to.
func (s *Server) flushMetrics(asked bool) error {
	s.mu.Lock()
	k := s.sink
	s.mu.Unlock()
	if k == nil {
		if asked {
			return badf("Metrics have no file: PUT /metrics before the start, or GET /metrics.")
		}
		return nil
	}
	text, err := line(s.metricsLine())
	if err != nil {
		return err
	}
	if _, err := k.Write(text); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// metricsLine is the metrics in Firecracker's names, as far as both count the
// same. Unlike Firecracker's they count since the start, not since the last line.
func (s *Server) metricsLine() map[string]any {
	u := s.proc.read()
	out := map[string]any{
		"utc_timestamp_ms": time.Now().UnixMilli(),
		"api_server":       map[string]uint64{"requests": s.counters.requests.Load(), "refused": s.counters.refused.Load()},
		"vmm":              map[string]uint64{"resident_bytes": u.resident, "guest_resident_bytes": u.shared, "cpu_time_us": uint64(u.cpu.Microseconds())},
	}
	m, _, ok := s.metricsOf()
	if !ok {
		return out
	}
	var cpu vmm.VCPUMetrics
	for _, v := range m.VCPUs {
		cpu.IOIn += v.IOIn
		cpu.IOOut += v.IOOut
		cpu.MMIORead += v.MMIORead
		cpu.MMIOWrite += v.MMIOWrite
		cpu.Unclaimed += v.Unclaimed
	}
	out["vcpu"] = map[string]uint64{
		"exit_io_in": cpu.IOIn, "exit_io_out": cpu.IOOut, "exit_mmio_read": cpu.MMIORead, "exit_mmio_write": cpu.MMIOWrite, "unclaimed": cpu.Unclaimed,
	}
	s.mu.Lock()
	spec := s.spec
	s.mu.Unlock()
	for i, d := range m.Disks {
		name := strconv.Itoa(i)
		if i < len(spec.Drives) {
			name = spec.Drives[i].ID
		}
		out["block_"+name] = map[string]uint64{
			"read_count": d.Read.Requests, "read_bytes": d.Read.Bytes, "write_count": d.Write.Requests, "write_bytes": d.Write.Bytes,
			"flush_count": d.Flush.Requests, "execute_fails": d.Read.Errors + d.Write.Errors + d.Flush.Errors, "invalid_reqs_count": d.Malformed + d.Unsupported,
			"read_agg_us": uint64(d.Latencies.Read.Total.Microseconds()), "write_agg_us": uint64(d.Latencies.Write.Total.Microseconds()),
		}
	}
	for i, n := range m.Nets {
		name := strconv.Itoa(i)
		if i < len(spec.Nets) {
			name = spec.Nets[i].ID
		}
		out["net_"+name] = map[string]uint64{
			"tx_packets_count": n.TX.Frames, "tx_bytes_count": n.TX.Bytes, "tx_malformed_frames": n.TX.Malformed + n.TX.Oversized, "tx_rate_limiter_throttled": n.TX.Throttled,
			"rx_packets_count": n.RX.Frames, "rx_bytes_count": n.RX.Bytes, "rx_fails": n.RX.Malformed + n.RX.Oversized, "rx_rate_limiter_throttled": n.RX.Throttled,
			"no_rx_avail_buffer": n.Starved,
		}
	}
	if v := m.Vsock; v != nil {
		out["vsock"] = map[string]uint64{
			"tx_packets_count": v.FromGuest.Packets, "tx_bytes_count": v.FromGuest.Bytes, "rx_packets_count": v.ToGuest.Packets, "rx_bytes_count": v.ToGuest.Bytes,
			"conns_added": v.Opened + v.Called, "conns_killed": v.Resets,
		}
	}
	return out
}
