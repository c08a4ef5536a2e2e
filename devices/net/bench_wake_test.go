package net

import (
	"sync"
	"testing"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// echo sends one frame back for each that comes.
type echo struct {
	void
	mu   sync.Mutex
	wake func()
	idle bool
}

func (e *echo) OnReady(wake func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.wake = wake
}

func (e *echo) Send(*Header, [][]byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left++
	if e.idle && e.wake != nil {
		e.idle = false
		e.wake()
	}
}

func (e *echo) Next() (*Header, [][]byte, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.idle = e.left == 0
	return &e.h, e.frame[:], e.left > 0
}

func (e *echo) Pop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left--
}

// waker is a driver's end that wakes one goroutine.
type waker struct{ c chan struct{} }

func (w waker) Used()          { signal(w.c) }
func (w waker) ConfigChanged() {}
func (w waker) Fault(error)    {}

// BenchmarkEcho is the time from a kick to the interrupt for the frame that comes
// back, with all goroutines: two doorbells and a wake-up of the guest's.
func BenchmarkEcho(b *testing.B) {
	e := &echo{void: void{mtu: 1500}}
	f := frameTo(testMAC, 60)
	e.frame = [2][]byte{f[:30], f[30:]}
	dev := configured(b, Config{Backend: e, MAC: testMAC})
	mem := virtqtest.NewMemory(b, 96<<20)
	end := waker{make(chan struct{}, 1)}
	a := devices.Activation{Mem: mem, Features: dev.Features(), Driver: end}
	var rings [3]*virtqtest.Ring
	for i := range rings {
		rings[i] = benchRing(b, mem, uint64(i), &a)
	}
	rx := newReuse(b, rings[0], 1, nil, []virtqtest.Buf{buf(b, rings[0], 2000)})
	sent := buf(b, rings[1], HeaderLen+60)
	if err := rings[1].Mem.WriteAt(f, sent.GPA+HeaderLen); err != nil {
		b.Fatal(err)
	}
	if err := dev.Activate(a); err != nil {
		b.Fatal(err)
	}
	defer dev.Reset()
	var tx *reuse
	used := rings[0].UsedIdx()
	b.ReportAllocs()
	for b.Loop() {
		rings[0].SetUsedEvent(used)
		if tx == nil {
			tx = newReuse(b, rings[1], 1, []virtqtest.Buf{sent}, nil)
		} else {
			tx.refill(1)
		}
		a.Queues[1].Kick.Ring()
		for rings[0].UsedIdx() == used {
			<-end.c
		}
		used = rings[0].UsedIdx()
		rx.refill(1)
	}
}
