package virtq_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// sent is what the model knows of a request under way.
type sent struct {
	head  uint16
	read  []byte
	write int
	reply []byte // set by the device
	chain *virtq.Chain
}

// passes says by counting whether an index that goes from old to now steps over
// event: the definition behind VirtIO 1.2 §2.7.7.1, without its arithmetic.
func passes(event, now, old uint16) bool {
	for i := old; i != now; i++ {
		if i == event {
			return true
		}
	}
	return false
}

// TestAgainstModel runs a random driver and a random device in step with a model
// of both rings, indices and wishes beginning close to their wraparound.
func TestAgainstModel(t *testing.T) {
	rounds := 400
	if testing.Short() {
		rounds = 60
	}
	var done int
	for seed := range rounds {
		done += model(t, rand.New(rand.NewPCG(uint64(seed), 1)))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d requests completed", done)
	if done < 50*rounds {
		t.Errorf("only %d requests completed in %d rounds", done, rounds)
	}
}

func model(t *testing.T, rnd *rand.Rand) (completed int) {
	o := virtqtest.Options{
		Size:     1 << rnd.IntN(7),
		EventIdx: rnd.IntN(2) == 0,
		Indirect: rnd.IntN(2) == 0,
		OddAvail: rnd.IntN(4) == 0,
	}
	r, err := virtqtest.NewRing(virtqtest.NewMemory(t, ram), base, ram-base, o)
	if err != nil {
		t.Fatal(err)
	}
	start := uint16(65536 - rnd.IntN(100))
	r.StartAt(start)
	q, err := virtq.Restore(r.Mem, virtq.State{Config: r.Cfg, NextAvail: start, NextUsed: start})
	if err != nil {
		t.Fatal(err)
	}
	var (
		added, visible []*sent // by the driver, not yet popped
		taken          []*sent // by the device
		pushed, back   []*sent // in the used ring, and visible there
		availIdx       = start // published by the driver
		popIdx         = start
		usedIdx        = start // published by the device
		collected      = start
		kickAt         = start // EVENT_IDX: where the device wants a kick
		kicksOn        = true
		irqAt          = start // EVENT_IDX: where the driver wants an interrupt
		irqOn          = true
	)
	bad := func(f string, a ...any) { t.Errorf("%+v: %s", o, fmt.Sprintf(f, a...)) }
	for step := 0; step < 2000 && !t.Failed(); step++ {
		switch rnd.IntN(10) {
		case 0, 1, 2: // the driver posts
			s := &sent{}
			var rd [][]byte
			for range rnd.IntN(4) {
				p := make([]byte, 1+rnd.IntN(64))
				for i := range p {
					p[i] = byte(rnd.Uint32())
				}
				rd, s.read = append(rd, p), append(s.read, p...)
			}
			var wr []uint32
			for range rnd.IntN(4) {
				wr = append(wr, 1+rnd.Uint32N(64))
				s.write += int(wr[len(wr)-1])
			}
			add := r.Add
			if o.Indirect && rnd.IntN(2) == 0 {
				add = r.AddIndirect
			}
			if len(rd)+len(wr) > 0 {
				head, err := add(rd, wr)
				if err == virtqtest.ErrFull {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				s.head = head
				added = append(added, s)
			}
		case 3: // the driver kicks
			now := availIdx + uint16(len(added))
			want := len(added) > 0 && kicksOn
			if o.EventIdx {
				want = passes(kickAt, now, availIdx)
			}
			if got := r.Kick(); got != want {
				bad("kick %v, the model wants %v", got, want)
			}
			visible, added, availIdx = append(visible, added...), nil, now
		case 4, 5: // the device takes
			c := new(virtq.Chain)
			ok, err := q.PopInto(c)
			if err != nil {
				bad("%v", err)
			}
			if ok != (len(visible) > 0) {
				bad("pop %v with %d waiting", ok, len(visible))
			}
			if !ok || t.Failed() {
				continue
			}
			s := visible[0]
			s.chain, visible, popIdx = c, visible[1:], popIdx+1
			got := make([]byte, c.ReadLen())
			c.CopyOut(got, 0)
			if c.Head() != s.head || !bytes.Equal(got, s.read) || c.WriteLen() != uint64(s.write) {
				bad("chain %d reads %x and writes %d, the model has %d, %x, %d", c.Head(), got, c.WriteLen(), s.head, s.read, s.write)
			}
			taken = append(taken, s)
		case 6: // the device gives back, in any order
			if len(taken) == 0 {
				continue
			}
			i := rnd.IntN(len(taken))
			s := taken[i]
			taken = append(taken[:i], taken[i+1:]...)
			s.reply = make([]byte, rnd.IntN(s.write+1))
			for i := range s.reply {
				s.reply[i] = byte(rnd.Uint32())
			}
			if n := s.chain.CopyIn(s.reply, 0); n != len(s.reply) {
				bad("%d of %d bytes fitted", n, len(s.reply))
			}
			q.Push(s.head, uint32(len(s.reply)))
			pushed = append(pushed, s)
		case 7: // the device publishes
			now := usedIdx + uint16(len(pushed))
			want := len(pushed) > 0 && irqOn
			if o.EventIdx {
				want = passes(irqAt, now, usedIdx)
			}
			if got := q.Publish(); got != want {
				bad("interrupt %v, the model wants %v", got, want)
			}
			back, pushed, usedIdx = append(back, pushed...), nil, now
		case 8: // the driver collects
			us, err := r.Collect()
			if err != nil || len(us) != len(back) {
				bad("%d came back, the model has %d: %v", len(us), len(back), err)
				continue
			}
			for i, u := range us {
				if u.Head != back[i].head || !bytes.Equal(u.Joined(), back[i].reply) {
					bad("head %d came back with %x, the model has %d with %x", u.Head, u.Joined(), back[i].head, back[i].reply)
				}
			}
			completed += len(us)
			collected, back = collected+uint16(len(us)), nil
		case 9: // wishes
			switch rnd.IntN(5) {
			case 4: // some drivers wait for several at once
				if o.EventIdx {
					irqAt = collected + uint16(rnd.IntN(8))
					r.SetUsedEvent(irqAt)
				}
			case 0:
				q.DisableKicks()
				kicksOn = false
			case 1:
				if got := q.EnableKicks(); got != (len(visible) > 0) {
					bad("EnableKicks %v with %d waiting", got, len(visible))
				}
				kicksOn, kickAt = true, popIdx
			case 2:
				r.DisableInterrupts()
				irqOn = false
			case 3:
				if got := r.EnableInterrupts(); got != (len(back) > 0) {
					bad("EnableInterrupts %v with %d back", got, len(back))
				}
				irqOn, irqAt = true, collected
			}
		}
		if q.InFlight() != len(taken) {
			bad("%d in flight, the model has %d", q.InFlight(), len(taken))
		}
	}
	return completed
}
