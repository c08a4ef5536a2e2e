package virtq_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// TestNoLostWakeUp lets a driver and a device run against each other, each
// sleeping whenever it may, on a flag that the other sets only when asked. A
// wake-up lost on either side leaves both asleep. They spin on the flag: the
// windows in question are a few nanoseconds wide, and a goroutine put to sleep
// and woken would never come back into one.
func TestNoLostWakeUp(t *testing.T) {
	budget := time.Second // for each kind of ring
	if testing.Short() {
		budget = 200 * time.Millisecond
	}
	for _, o := range []virtqtest.Options{
		{Size: 2, EventIdx: true}, {Size: 2},
		{Size: 4, EventIdx: true}, {Size: 4},
		{Size: 256, EventIdx: true, Indirect: true}, {Size: 256},
	} {
		t.Run(fmt.Sprintf("size %d, event %v", o.Size, o.EventIdx), func(t *testing.T) {
			r, q := pair(t, o)
			var sum race
			for start := time.Now(); sum.total < 300_000 && time.Since(start) < budget && !t.Failed(); {
				race := &race{r: r, q: q, total: 2000}
				var wg sync.WaitGroup
				wg.Go(func() { race.device(t) })
				race.driver(t)
				race.stop.Store(true)
				wg.Wait()
				sum.total += race.total
				sum.kicks += race.kicks
				sum.irqs += race.irqs
			}
			t.Logf("%d requests, %d kicks, %d interrupts", sum.total, sum.kicks, sum.irqs)
		})
	}
}

type race struct {
	r           *virtqtest.Ring
	q           *virtq.Queue
	total       int
	kicks, irqs int
	stop        atomic.Bool
	bell, irq   atomic.Bool
}

// sleep waits for flag and clears it; false says that the other side has
// stopped, or that nothing has come in a time that no scheduler explains.
func (r *race) sleep(flag *atomic.Bool) bool {
	var since time.Time
	for i := 1; !flag.Swap(false); i++ {
		if r.stop.Load() {
			return false
		}
		if i%64 == 0 {
			runtime.Gosched()
		}
		if i%65536 == 0 {
			if since.IsZero() {
				since = time.Now()
			} else if time.Since(since) > virtqtest.Patience {
				return false
			}
		}
	}
	return true
}

func (r *race) device(t *testing.T) {
	q := r.q
	defer r.stop.Store(true)
	for n := 0; n < r.total; {
		q.DisableKicks()
		for {
			c, err := q.Pop()
			if err != nil {
				t.Error(err)
				return
			}
			if c == nil {
				break
			}
			var p [8]byte
			c.CopyOut(p[:], 0)
			c.CopyIn(p[:], 0)
			q.Push(c.Head(), 8)
			n++
			if q.Publish() {
				r.irqs++
				r.irq.Store(true)
			}
		}
		if n == r.total || q.EnableKicks() {
			continue
		}
		if !r.sleep(&r.bell) {
			if !r.stop.Load() {
				t.Errorf("the device sleeps at request %d of %d, avail.idx %d", n, r.total, r.r.AvailIdx())
			}
			return
		}
	}
	// The driver may still have to be told of the last ones.
	for !r.stop.Load() {
		runtime.Gosched()
	}
}

func (r *race) driver(t *testing.T) {
	rnd := rand.New(rand.NewPCG(uint64(r.r.Cfg.Size), 2))
	next, back := 0, 0
	want := make([]uint64, r.r.Cfg.Size) // by head
	drain := false
	for back < r.total {
		// Now and then everything has to come back before anything is added:
		// a lost kick would else be mended by the next one.
		drain = back < next && (drain || rnd.IntN(4) == 0)
		for range 1 + rnd.IntN(8) {
			if drain || next == r.total {
				break
			}
			var p [8]byte
			binary.LittleEndian.PutUint64(p[:], uint64(next))
			head, err := r.r.Add([][]byte{p[:]}, []uint32{8})
			if err != nil {
				break // full
			}
			want[head] = uint64(next)
			next++
			if r.r.Kick() {
				r.kicks++
				r.bell.Store(true)
			}
		}
		r.r.DisableInterrupts()
		us, err := r.r.Collect()
		if err != nil {
			t.Error(err)
			return
		}
		for _, u := range us {
			if p := u.Joined(); len(p) != 8 || binary.LittleEndian.Uint64(p) != want[u.Head] {
				t.Errorf("head %d came back with %x, sent with %d", u.Head, p, want[u.Head])
				return
			}
		}
		back += len(us)
		// Jitter moves the sides against each other, so that over the run
		// each step of one meets each step of the other.
		for range rnd.IntN(40) {
			r.stop.Load()
		}
		if back == next || !drain && next < r.total && r.r.Room() > 1 || r.r.EnableInterrupts() {
			continue
		}
		if !r.sleep(&r.irq) {
			t.Errorf("the driver sleeps with %d of %d back, used.idx %d", back, r.total, r.r.UsedIdx())
			return
		}
	}
}
