package vmm_test

import (
	"context"
	"testing"

	"github.com/smolvmm/smolvmm/vmm"
)

// The counters have what the guest did; they can be read while it runs and after.
func TestMetrics(t *testing.T) {
	m := metricsMachine(t)
	select {
	case <-m.Started():
		t.Fatal("started before Run")
	default:
	}
	if got := m.Metrics(); len(got.VCPUs) != 1 || got.VCPUs[0] != (vmm.VCPUMetrics{}) || got.Memory != 64<<20 {
		t.Errorf("before the guest ran: %+v", got)
	}
	reading, done := make(chan struct{}), make(chan struct{})
	go func() { // beside the guest, for the race detector
		defer close(reading)
		<-m.Started()
		for {
			select {
			case <-done:
				return
			default:
				_ = m.Metrics()
			}
		}
	}()
	exit, err := m.Run(context.Background())
	close(done)
	<-reading
	if err != nil || exit.End != vmm.EndExit {
		t.Fatalf("%v, %v", exit, err)
	}
	got := m.Metrics()
	v, d := got.VCPUs[0], got.Disks[0]
	if v.IOOut == 0 || v.IOIn == 0 || v.MMIORead == 0 || v.MMIOWrite == 0 {
		t.Errorf("exits %+v", v)
	}
	if d.Read.Requests == 0 || d.Write.Bytes == 0 || d.Interrupts == 0 {
		t.Errorf("disk %+v", d)
	}
	sum := uint64(0)
	for _, n := range d.Latencies.Read.Took {
		sum += n
	}
	if sum != d.Read.Requests || d.Latencies.Read.Total <= 0 {
		t.Errorf("%d latencies of %d reads: %+v", sum, d.Read.Requests, d.Latencies.Read)
	}
	if limits := vmm.DiskLatencyLimits(); len(limits) != vmm.DiskLatencyBuckets-1 || limits[0] <= 0 || limits[1] != 2*limits[0] {
		t.Errorf("limits %v", limits)
	}
}

// metricsMachine is the demo guest with a disk, which checks all that it has.
func metricsMachine(t *testing.T) *vmm.Machine {
	t.Helper()
	cfg, _ := demoConfig(t, "check")
	cfg.Disks = []vmm.Disk{{Path: scratch(t, 16<<20)}}
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}
