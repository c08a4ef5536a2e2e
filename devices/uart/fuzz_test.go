package uart

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

// A fuzzed session is a string of operations of two bytes: what, value.
//
//	0x00-0x07  write the register
//	0x10-0x17  read the register
//	0x20       Input of value+1 characters, counted up from the last
//	0x21       InjectBreak
//	0x22       the pace allows the next burst
//	0x23       REP OUTSB of value characters to THR
//	0x24       Quiesce, State, Restore into a new UART, Resume
func ops(s ...string) []byte {
	var b []byte
	for _, o := range s {
		b = append(b, o...)
	}
	return b
}

func reads(off, n int) string { return string(bytes.Repeat([]byte{0x10 + byte(off), 0}, n)) }

// netbsdInit is what NetBSD's com(4) does as console: probe, FIFO detection,
// 9,600 baud, interrupts; linuxInit is what Linux's 8250 driver asks.
var (
	netbsdInit = "\x03\xBF\x02\x00\x03\x80\x00\x0C\x01\x00\x03\x03\x04\x03\x02\x07\x01\x00" +
		"\x03\x03\x02\x00\x13\x00\x12\x00\x02\xC7\x12\x00\x12\x00\x02\x00\x02\x87\x04\x0B\x01\x0D\x16\x00"
	linuxInit = "\x01\x00\x11\x00\x01\x0F\x11\x00\x04\x1A\x16\x00\x04\x00\x03\xBF\x12\x00\x03\x00\x02\x01\x12\x00" +
		"\x02\x07\x02\x00\x15\x00\x10\x00\x12\x00\x16\x00\x03\x13\x04\x08\x01\x02\x12\x00\x01\x00\x01\x02\x12\x00\x01\x05"
	polledPrint = "\x15\x00\x00N\x15\x00\x00e\x15\x00\x00t\x15\x00\x00B\x15\x00\x00S\x15\x00\x00D\x15\x00\x00\n"
	irqPrint    = "\x01\x0F\x12\x00\x23\x10\x12\x00\x23\x10\x12\x00\x23\x03\x01\x0D\x12\x00"
)

func FuzzRegisters(f *testing.F) {
	f.Add(ops(netbsdInit, polledPrint, irqPrint))
	f.Add(ops(netbsdInit, "\x20\x28", reads(regLSR, 1), reads(regData, 16), "\x22\x00", reads(regData, 20), reads(regIIR, 2)))
	f.Add(ops(linuxInit, polledPrint, "\x20\x03", reads(regIIR, 1), reads(regData, 2), "\x21\x00\x22\x00", reads(regLSR, 2), reads(regData, 3)))
	f.Add(ops("\x04\x1B\x02\xC1\x01\x0F", "\x00a\x00b\x00c\x23\x20", reads(regIIR, 1), reads(regLSR, 1), reads(regData, 17), reads(regMSR, 1), "\x04\x0B"))
	f.Add(ops(strings.Repeat("\x23\xFF\x15\x00", 400))) // more than the buffers hold
	f.Add(ops(netbsdInit, "\x20\x50\x23\xFF\x24\x00", reads(regData, 16), "\x22\x00", reads(regData, 16), irqPrint))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4096 {
			return
		}
		var host bytes.Buffer
		s := &session{t: t, host: &host}
		s.fresh()
		for ; len(b) >= 2; b = b[2:] {
			s.do(b[0], b[1])
			s.check()
		}
		if err := s.u.Close(); err != nil {
			t.Fatal(err)
		}
		s.dropped += s.u.Stats().Dropped
		if len(s.sent) != host.Len()+int(s.dropped) || s.dropped == 0 && !bytes.Equal(host.Bytes(), s.sent) {
			t.Fatalf("guest sent %d bytes, host got %d, dropped %d, or they differ", len(s.sent), host.Len(), s.dropped)
		}
	})
}

// session is a model of what a guest and a host may rely on.
type session struct {
	t    *testing.T
	u    *UART
	p    *pin
	host io.Writer

	sent    []byte // what the host must get
	dropped uint64 // by UARTs before this one
	given   byte   // the last character given to Input
	mixed   bool   // characters have been lost or looped back: what comes next is unknown
	next    byte   // the next character to be read
}

// fresh makes a UART for which time stands still: bursts come with operation
// 0x22 only.
func (s *session) fresh() {
	s.p = &pin{}
	s.u = New(Config{Out: s.host, Line: s.p})
	s.still()
}

func (s *session) still() {
	s.u.mu.Lock()
	defer s.u.mu.Unlock()
	s.u.host.next = time.Now().Add(time.Hour)
}

// send has the model's account of what a guest sends. THRE promises room for a
// FIFO.
func (s *session) send(p []byte, write func()) {
	s.u.mu.Lock()
	ready, dropped := s.u.txReady(), s.u.stats.Dropped
	s.u.mu.Unlock()
	write()
	if now := s.u.Stats().Dropped; ready && len(p) <= fifoSize && now != dropped {
		s.t.Fatalf("dropped %d of %d characters with THRE set", now-dropped, len(p))
	}
	s.sent = append(s.sent, p...)
}

func (s *session) do(what, v byte) {
	u := s.u
	dlab, loop := u.lcr&lcrDLAB != 0, u.mcr&mcrLoop != 0
	switch {
	case what < Size:
		if what == regData && !dlab && !loop {
			s.send([]byte{v}, func() { out(u, regData, v) })
			return
		}
		if what == regIIR || what == regData && !dlab {
			s.mixed = true // may have cleared the FIFO, or has looped back
		}
		out(u, uint64(what), v)
	case what >= 0x10 && what < 0x10+Size:
		s.read(uint64(what-0x10), dlab)
	case what == 0x20:
		p := make([]byte, int(v)+1)
		for i := range p {
			p[i] = s.given + 1 + byte(i)
		}
		n := u.Input(p)
		s.given += byte(n)
	case what == 0x21:
		if u.InjectBreak() {
			s.mixed = true
		}
	case what == 0x22:
		u.mu.Lock()
		u.host.next = time.Time{}
		u.deliver()
		u.mu.Unlock()
		s.still()
	case what == 0x23:
		p := bytes.Repeat([]byte{v}, int(v))
		if !dlab && !loop {
			s.send(p, func() { u.WriteMany(regData, p) })
			return
		}
		s.mixed = s.mixed || !dlab
		u.WriteMany(regData, p)
	case what == 0x24:
		s.move()
	}
}

func (s *session) read(off uint64, dlab bool) {
	dr := s.u.rxLen > 0
	got := in(s.u, off)
	bad := false
	switch off {
	case regData:
		if dr && !dlab {
			s.next++
			bad = !s.mixed && got != s.next
		}
	case regIER:
		bad = !dlab && got&^ierMask != 0
	case regIIR:
		switch got &^ iirFIFOs {
		case iirNone, iirLine, iirRx, iirTimeout, iirTx, iirModem:
			bad = got&iirFIFOs != 0 && got&iirFIFOs != iirFIFOs
		default:
			bad = true
		}
	case regMCR:
		bad = got&^mcrMask != 0
	case regLSR:
		bad = got&lsrDR != 0 != dr || got&lsrTHRE>>5 != got&lsrTEMT>>6
	}
	if bad {
		s.t.Fatalf("register %d reads %#x", off, got)
	}
}

// check holds after every operation.
func (s *session) check() {
	u := s.u
	u.mu.Lock()
	defer u.mu.Unlock()
	level, _ := s.p.now()
	pending := u.cause(u.ier) != iirNone && u.mcr&(mcrOUT2|mcrLoop) == mcrOUT2
	switch {
	case level != pending:
		s.t.Fatalf("line %v, pending %v", level, pending)
	case u.rxLen < 0 || u.rxLen > u.rxSize():
		s.t.Fatalf("%d characters in the receiver", u.rxLen)
	case len(u.host.held) > heldMax || cap(u.host.held) > 4*heldMax:
		s.t.Fatalf("%d characters held", len(u.host.held))
	case len(u.tx.front) > txHalf || cap(u.tx.front) > txHalf:
		s.t.Fatalf("%d bytes buffered", len(u.tx.front))
	}
}

// move takes the UART to a new one through its state.
func (s *session) move() {
	if err := s.u.Quiesce(); err != nil {
		s.t.Fatal(err)
	}
	state, err := s.u.State()
	if err != nil {
		s.t.Fatal(err)
	}
	s.u.Close()
	s.dropped += s.u.Stats().Dropped
	s.fresh()
	if err := s.u.Restore(state); err != nil {
		s.t.Fatalf("%s: %v", state, err)
	}
	if err := s.u.Resume(); err != nil {
		s.t.Fatal(err)
	}
}

const megabyte = 1 << 20

// BenchmarkPrint is 1 MiB of output a byte at a time, as a polling driver does
// it with an LSR read before each byte; port exits are not part of it.
func BenchmarkPrint(b *testing.B) {
	u := New(Config{Out: io.Discard})
	defer u.Close()
	b.SetBytes(megabyte)
	b.ReportAllocs()
	c, lsr := []byte{'x'}, []byte{0}
	for b.Loop() {
		for range megabyte {
			for lsr[0] = 0; lsr[0]&lsrTHRE == 0; {
				u.Read(regLSR, lsr)
			}
			u.Write(regData, c)
		}
	}
	if d := u.Stats().Dropped; d != 0 {
		b.Fatalf("dropped %d", d)
	}
}

// BenchmarkPrintStrings is the same in strings of a FIFO's size with the THRE
// interrupt on, as an interrupt-driven driver does it.
func BenchmarkPrintStrings(b *testing.B) {
	u := New(Config{Out: io.Discard, Line: &pin{}})
	defer u.Close()
	out(u, regMCR, mcrOUT2)
	out(u, regIER, ierTx)
	b.SetBytes(megabyte)
	b.ReportAllocs()
	p, r := bytes.Repeat([]byte{'x'}, fifoSize), []byte{0}
	for b.Loop() {
		for range megabyte / fifoSize {
			for r[0] = 0; r[0] != iirTx; {
				u.Read(regIIR, r)
			}
			u.WriteMany(regData, p)
		}
	}
	if d := u.Stats().Dropped; d != 0 {
		b.Fatalf("dropped %d", d)
	}
}
