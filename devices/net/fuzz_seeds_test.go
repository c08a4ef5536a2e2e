package net

import (
	"encoding/binary"
	"testing"

	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
)

// input builds a seed: chains laid out one behind the other, and frames.
type input struct {
	flags  byte
	queues [fuzzQueues]struct{ descs, avail []byte }
	frames []byte
	memory []byte
}

func (s *input) put(p []byte) (gpa uint64) {
	for len(s.memory)%16 != 0 {
		s.memory = append(s.memory, 0)
	}
	gpa = fuzzMem + uint64(len(s.memory))
	s.memory = append(s.memory, p...)
	return gpa
}

func desc(addr uint64, n int, flags, next uint16) []byte {
	b := binary.LittleEndian.AppendUint64(nil, addr)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = binary.LittleEndian.AppendUint16(b, flags)
	return binary.LittleEndian.AppendUint16(b, next)
}

// add appends a chain of readable runs and writable lengths to a queue.
func (s *input) add(queue int, indirect bool, readable [][]byte, writable ...int) *input {
	q := &s.queues[queue]
	var table []byte
	first := uint16(len(q.descs) / 16)
	if indirect {
		first = 0
	}
	n := len(readable) + len(writable)
	for i := range n {
		flags, next := uint16(virtqtest.Next), first+uint16(i)+1
		if i == n-1 {
			flags, next = 0, 0
		}
		if i < len(readable) {
			table = append(table, desc(s.put(readable[i]), len(readable[i]), flags, next)...)
		} else {
			w := writable[i-len(readable)]
			table = append(table, desc(s.put(make([]byte, w)), w, flags|virtqtest.Write, next)...)
		}
	}
	q.avail = binary.LittleEndian.AppendUint16(q.avail, uint16(len(q.descs)/16))
	if indirect {
		table = desc(s.put(table), len(table), virtqtest.Indirect, 0)
	}
	q.descs = append(q.descs, table...)
	return s
}

// frame appends one for the guest.
func (s *input) frame(h Header, n int) *input {
	s.frames = append(s.frames, h[:]...)
	s.frames = binary.LittleEndian.AppendUint16(s.frames, uint16(n))
	s.frames = append(s.frames, 1)
	return s
}

func (s *input) bytes() []byte {
	b := []byte{s.flags}
	for _, q := range s.queues {
		b = append(b, byte(len(q.avail)/2))
	}
	for _, q := range s.queues {
		b = append(b, q.descs...)
		b = append(b, make([]byte, fuzzDescs-len(q.descs))...)
		b = append(b, q.avail...)
		b = append(b, make([]byte, 2*fuzzSize-len(q.avail))...)
	}
	b = append(b, s.frames...)
	b = append(b, make([]byte, fuzzHead-len(b))...)
	return append(b, s.memory...)
}

// fuzzSeeds complete transfers both ways and every command, with each feature and
// without.
func fuzzSeeds() [][]byte {
	var seeds [][]byte
	plain := Header{}
	tso4, tso6, partial := header(1, 1, 1448, 34, 16), header(1, 4, 1428, 54, 16), header(1, 0, 0, 34, 16)
	gw := [6]byte{2}
	for _, flags := range []byte{0, flagNoMrg, flagNoEvents, flagNoTables, flagNoMQ, flagPlain, flagJumbo, flagTame, flagUnplug, flagNoMrg | flagPlain | flagNoEvents | flagNoTables} {
		ind := flags&flagNoTables == 0
		ctrl := 4
		if flags&flagNoMQ != 0 {
			ctrl = 2
		}
		h, t4, t6, pc := plain[:], tso4[:], tso6[:], partial[:]
		if flags&flagPlain != 0 {
			h, t4, t6, pc = plain[:], plain[:], plain[:], plain[:]
		}
		seed := func() *input { return &input{flags: flags} }
		for _, s := range []*input{
			seed().add(1, false, [][]byte{h, frameTo(gw, 60)}).add(1, ind, [][]byte{append(append([]byte{}, h...), frameTo(gw, 1514)...)}),
			seed().add(1, false, [][]byte{t4, frameTo(gw, 54), frameTo(gw, 1400)}).add(1, ind, [][]byte{t6[:3], t6[3:], frameTo(gw, 90)}).add(1, false, [][]byte{pc, frameTo(gw, 70)}),
			seed().add(0, false, nil, 12, 1600).add(0, ind, nil, 2000).frame(plain, 60).frame(plain, 1514),
			seed().add(0, false, nil, 600).add(0, ind, nil, 500, 100).add(0, false, nil, 2000).frame(plain, 1200).frame(plain, 100),
			seed().add(0, ind, nil, 3000).add(0, ind, nil, 3000).frame(Header(t4), 2000).frame(Header(pc), 100),
			seed().add(ctrl, false, [][]byte{{0, 0}, {1}}, 1).add(ctrl, ind, [][]byte{{0, 1, 1}}, 1).add(ctrl, false, [][]byte{{0, 0, 0}}, 1),
			seed().add(ctrl, false, [][]byte{{1, 1}, otherMAC[:]}, 1).add(ctrl, ind, [][]byte{{1, 0}, macTable(otherMAC, groupB), macTable(groupA)}, 1).
				add(0, false, nil, 2000).frame(plain, 60),
			seed().add(4, ind, [][]byte{{4, 0, 2, 0}}, 1).add(3, false, [][]byte{h, udp4(gw, 1, 2, 3, 4)}).add(2, false, nil, 2000).add(0, false, nil, 2000).frame(plain, 200),
			seed().add(1, false, [][]byte{h, frameTo(gw, 13)}).add(1, false, [][]byte{{1, 2}}).add(ctrl, false, [][]byte{{9, 9}}, 1).add(0, false, nil, 5).frame(plain, 60),
		} {
			seeds = append(seeds, s.bytes())
		}
	}
	return seeds
}

// TestFuzzSeeds: the seeds do the work that they are there for.
func TestFuzzSeeds(t *testing.T) {
	r := newFuzzRig(t)
	var sum Stats
	for i, s := range fuzzSeeds() {
		st, fault := r.run(t, s)
		if fault != nil {
			t.Errorf("seed %d: %v", i, fault)
		}
		sum.TX.Frames += st.TX.Frames
		sum.TX.Malformed += st.TX.Malformed
		sum.RX.Frames += st.RX.Frames
		sum.Filtered += st.Filtered
		sum.Commands += st.Commands
		sum.Refused += st.Refused
		sum.BadBuffers += st.BadBuffers
	}
	// 10 variants of 9 seeds.
	if sum.TX.Frames < 50 || sum.RX.Frames < 50 || sum.Commands < 50 || sum.Refused < 10 || sum.BadBuffers < 10 || sum.TX.Malformed < 20 || sum.Filtered < 5 {
		t.Errorf("%+v", sum)
	}
}
