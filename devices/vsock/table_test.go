package vsock

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestFlow: credit in both directions, also where counters wrap.
func TestFlow(t *testing.T) {
	const top = 1<<32 - 1
	for _, c := range []struct {
		sent, alloc, fwd, room uint32
	}{
		{0, 0, 0, 0}, {0, 100, 0, 100}, {100, 100, 0, 0}, {100, 100, 40, 40}, {99, 100, 0, 1},
		{200, 100, 0, 0},            // it has shrunk its buffer
		{5, 100, 6, 0},              // it has read what was never sent
		{5, top, top - 5, top - 11}, // across the wrap: 11 on their way
		{5, 100, top - 200, 0}, {0, top, 0, top},
	} {
		f := flow{sent: c.sent}
		f.hear(c.alloc, c.fwd)
		if got := f.room(); got != c.room {
			t.Errorf("%+v: room %d", c, got)
		}
	}
	for _, start := range []uint32{0, top - 50, top} {
		f := flow{alloc: 100, got: start, fwd: start, told: start}
		if !f.take(60) || !f.take(0) || f.take(41) || f.take(top) || !f.take(40) || f.take(1) || f.waiting() != 100 {
			t.Fatalf("from %d: %+v", start, f)
		}
		if f.forward(24); f.due() {
			t.Error("an update is due too early")
		}
		if f.forward(1); !f.due() || !f.take(25) || f.take(1) {
			t.Errorf("from %d: %+v", start, f)
		}
	}
}

// TestActions walks through what the specification says of each packet.
func TestActions(t *testing.T) {
	for _, c := range []struct {
		s    state
		op   uint16
		want action
	}{
		{none, opRequest, accept}, {none, opRST, ignore}, {none, opRW, refuse}, {none, opResponse, refuse}, {none, opShutdown, refuse},
		{none, 0, refuse}, {none, 8, refuse}, {none, 65535, refuse},
		{calling, opResponse, answer}, {calling, opRST, gone}, {calling, opRW, reset}, {calling, opRequest, reset}, {calling, 0, reset},
		{open, opRW, data}, {open, opShutdown, shut}, {open, opCreditUpdate, credit}, {open, opCreditRequest, tell}, {open, opRST, gone},
		{open, opRequest, reset}, {open, opResponse, reset}, {open, 0, reset}, {open, 9, reset},
		{closing, opRW, discard}, {closing, opRST, gone}, {closing, opShutdown, shut}, {closing, opRequest, reset}, {closing, 8, reset},
		{dying, opRW, ignore}, {dying, opRequest, ignore}, {dying, opRST, gone}, {dying, 8, ignore},
	} {
		if got := c.s.judge(c.op); got != c.want {
			t.Errorf("state %d, operation %d: %d, want %d", c.s, c.op, got, c.want)
		}
	}
	for s := none; s < states; s++ {
		if a := s.judge(opRST); a == refuse || a == reset {
			t.Errorf("state %d answers RST", s)
		}
	}
}

// TestTable: what the connections of one guest may hold is bounded.
func TestTable(t *testing.T) {
	tb := newTable()
	total := 0
	for i := range MaxConnections {
		var c *conn
		if i%2 == 0 {
			c = tb.add(key{uint32(i), 7}, open)
		} else {
			c = tb.call(9)
		}
		if c == nil || tb.find(c.key) != c {
			t.Fatal(i)
		}
		total += int(c.alloc)
	}
	if tb.add(key{1, 1}, open) != nil || tb.call(9) != nil {
		t.Error("one too many")
	}
	if want := largeConns*allocLarge + (MaxConnections-largeConns)*allocSmall; total != want || total > 64<<20 {
		t.Errorf("%d bytes promised, want %d", total, want)
	}
	c := tb.find(key{0, 7})
	tb.ready.push(c)
	tb.remove(c)
	tb.remove(c)
	if tb.ready.first != nil || tb.large != largeConns-1 {
		t.Error("a connection leaves something behind")
	}
	if c := tb.add(key{0, 8}, open); c == nil || c.alloc != allocLarge {
		t.Error("room is not used again")
	}
	// Ports of the host's that are in use are passed over.
	tb = newTable()
	tb.add(key{9, firstHostPort}, open)
	tb.lastPort = hostPorts - 1
	if a, b := tb.call(9), tb.call(9); a.host != firstHostPort+hostPorts-1 || b.host != firstHostPort+1 {
		t.Errorf("%#x %#x", a.host, b.host)
	}
}

func TestList(t *testing.T) {
	var l list
	cs := make([]conn, 4)
	for _, i := range []int{0, 1, 2, 1, 3} {
		l.push(&cs[i])
	}
	for _, i := range []int{1, 1, 0, 3} {
		l.remove(&cs[i])
	}
	if l.first != &cs[2] || l.last != &cs[2] || cs[2].next != nil || cs[2].prev != nil {
		t.Error("the list is torn")
	}
	l.push(&cs[0])
	l.remove(&cs[2])
	l.remove(&cs[0])
	if l.first != nil || l.last != nil {
		t.Error("the list is not empty")
	}
}

// TestRing holds the buffer against a plain one.
func TestRing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var r ring
	var want []byte
	for i := range 20000 {
		p := make([]byte, rnd.IntN(3000))
		for j := range p {
			p[j] = byte(i + j)
		}
		if len(want) < allocLarge-3000 && rnd.IntN(40) != 0 {
			cut := rnd.IntN(len(p) + 1)
			r.put([][]byte{p[:cut], nil, p[cut:]})
			want = append(want, p...)
		}
		n := rnd.IntN(min(len(want), 3000) + 1)
		if got := bytes.Join(r.runs(nil), nil); i%50 == 0 && !bytes.Equal(got, want) || len(got) != len(want) || !bytes.Equal(got[:n], want[:n]) {
			t.Fatalf("step %d: %d bytes, want %d", i, len(got), len(want))
		}
		r.drop(n)
		want = want[n:]
	}
	if len(r.buf) > allocLarge {
		t.Errorf("the buffer has %d bytes", len(r.buf))
	}
}
