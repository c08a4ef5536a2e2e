package virtq_test

import (
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// TestUnpop: what is put back comes again, in its order, and counts as never taken.
func TestUnpop(t *testing.T) {
	for _, event := range []bool{false, true} {
		r, q := pair(t, virtqtest.Options{Size: 8, EventIdx: event})
		for i := range byte(5) {
			if _, err := r.Add([][]byte{{i}}, nil); err != nil {
				t.Fatal(err)
			}
		}
		r.Kick()
		var chains [4]virtq.Chain
		for i := range chains {
			if ok, err := q.PopInto(&chains[i]); !ok || err != nil {
				t.Fatal(err)
			}
		}
		q.Push(chains[0].Head(), 0)
		q.Unpop(0)
		q.Unpop(3)
		if q.InFlight() != 0 {
			t.Errorf("%d in flight", q.InFlight())
		}
		if !q.EnableKicks() {
			t.Error("what was put back is no reason to look again")
		}
		for i := byte(1); i < 5; i++ {
			c, err := q.Pop()
			if err != nil || c == nil || c.Readable()[0][0] != i {
				t.Fatalf("chain %d: %v, %v", i, c, err)
			}
			q.Push(c.Head(), 0)
		}
		q.Publish()
		if u, err := r.Collect(); err != nil || len(u) != 5 {
			t.Errorf("%v, %v", u, err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a chain that was never taken was put back")
				}
			}()
			q.Unpop(1)
		}()
		q.Drop()
		q.Unpop(1) // nothing, as with the other methods
	}
}
