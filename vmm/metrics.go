package vmm

import (
	"github.com/smolvmm/smolvmm/devices/blk"
	"github.com/smolvmm/smolvmm/devices/net"
)

// DiskStats are a disk's counters, DiskCount is what was asked of it in one way,
// and DiskLatency how long that took.
type (
	DiskStats     = blk.Stats
	DiskCount     = blk.Count
	DiskLatency   = blk.Latency
	DiskLatencies = blk.Latencies
)

// NetPairStats are the counters of one pair of an interface's queues.
type NetPairStats = net.PairStats

// DiskLatencyBuckets is how many buckets DiskLatency.Took has.
const DiskLatencyBuckets = blk.LatencyBuckets

// DiskLatencyLimits are the upper ends of the buckets in seconds, but for the
// last, which has none.
func DiskLatencyLimits() []float64 {
	out := make([]float64, DiskLatencyBuckets-1)
	for i := range out {
		out[i] = blk.LatencyLimit(i).Seconds()
	}
	return out
}

// Metrics are a machine's counters since New. Each is exact; they are not read at
// one instant.
type Metrics struct {
	Memory uint64 // bytes that the guest was given
	VCPUs  []VCPUMetrics
	Disks  []DiskMetrics
	Nets   []NetMetrics
	Vsock  *VsockMetrics // nil without the device
}

// VCPUMetrics count a vCPU's returns from the guest to the monitor.
type VCPUMetrics struct {
	IOIn, IOOut         uint64 // port accesses, a string of them counting once
	MMIORead, MMIOWrite uint64 // of devices; doorbells are taken by KVM and not among them
	Interrupted         uint64 // by a signal: pauses, and the runtime's own
	Other               uint64
	Unclaimed           uint64 // of the accesses, those that no device answered
}

// DiskMetrics are a disk's. It has one queue.
type DiskMetrics struct {
	DiskStats
	Latencies  DiskLatencies
	Interrupts uint64
}

// NetMetrics are an interface's; Pairs are its queues.
type NetMetrics struct {
	NetStats
	Pairs      []NetPairStats
	Interrupts uint64
}

// VsockMetrics are the socket device's.
type VsockMetrics struct {
	VsockStats
	Interrupts uint64
}

// Metrics reads the counters, at any time between New and Close: it takes no
// lock, and the guest does not notice.
func (m *Machine) Metrics() Metrics {
	out := Metrics{Memory: m.cfg.Memory}
	for _, v := range m.vcpus {
		c := &v.Counters
		out.VCPUs = append(out.VCPUs, VCPUMetrics{
			IOIn: c.IOIn.Load(), IOOut: c.IOOut.Load(), MMIORead: c.MMIORead.Load(), MMIOWrite: c.MMIOWrite.Load(),
			Interrupted: c.Interrupted.Load(), Other: c.Others.Load(), Unclaimed: c.Unclaimed.Load(),
		})
	}
	// Disks come first among the pins, then interfaces, then the vsock: see addDevices.
	for i, d := range m.blks {
		out.Disks = append(out.Disks, DiskMetrics{d.Stats(), d.Latencies(), m.pins[i].raised.Load()})
	}
	for i, d := range m.nets {
		out.Nets = append(out.Nets, NetMetrics{d.Stats(), d.PairStats(), m.pins[len(m.blks)+i].raised.Load()})
	}
	if m.vsock != nil {
		out.Vsock = &VsockMetrics{m.vsock.Stats(), m.pins[len(m.blks)+len(m.nets)].raised.Load()}
	}
	return out
}

// Started is closed when Run has done what could fail and the guest runs, or is
// to run once it is resumed. A Run that fails before never closes it.
func (m *Machine) Started() <-chan struct{} { return m.started }
