package blk

import (
	"testing"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// silent is a driver's end that counts.
type silent struct {
	used, config int
	fault        error
}

func (s *silent) Used()           { s.used++ }
func (s *silent) ConfigChanged()  { s.config++ }
func (s *silent) Fault(err error) { s.fault = err }

// benchWorker makes a worker without its goroutine: drain serves what a ring
// holds, on the caller's.
func benchWorker(tb testing.TB, dev *Device, mem *guestmem.Memory) (*worker, *virtqtest.Ring) {
	tb.Helper()
	r, err := virtqtest.NewRing(mem, 1<<20, mem.Size()-1<<20, virtqtest.Options{Size: 256, EventIdx: true, Indirect: true})
	if err != nil {
		tb.Fatal(err)
	}
	q, err := virtq.New(mem, r.Cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return dev.newWorker(devices.Activation{
		Mem: mem, Features: dev.offered, Queues: []*devices.Queue{{Queue: q}}, Driver: &silent{},
	}), r
}
