package uart

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pin is an interrupt line that counts rising edges.
type pin struct {
	mu    sync.Mutex
	high  bool
	edges int
}

func (p *pin) Set(high bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if high && !p.high {
		p.edges++
	}
	p.high = high
}

func (p *pin) now() (bool, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.high, p.edges
}

func in(u *UART, off uint64) byte {
	b := []byte{0xFF}
	u.Read(off, b)
	return b[0]
}

func out(u *UART, off uint64, v byte) { u.Write(off, []byte{v}) }

// run gives f a UART whose clock is synctest's.
func run(t *testing.T, c Config, f func(t *testing.T, u *UART, p *pin)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &pin{}
		c.Line = p
		u := New(c)
		defer func() {
			if err := u.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}()
		f(t, u, p)
	})
}

type step struct {
	read bool
	off  uint64
	v    byte
}

func rd(off uint64, want byte) step { return step{true, off, want} }
func wr(off uint64, v byte) step    { return step{false, off, v} }

// TestRegisters checks every register bit by bit, named as in the datasheet.
func TestRegisters(t *testing.T) {
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"reset values, §8.0 table I", []step{
			rd(regIER, 0), rd(regIIR, 0x01), rd(regLCR, 0), rd(regMCR, 0), rd(regLSR, 0x60), rd(regMSR, 0xB0), rd(regData, 0),
			wr(regLCR, 0x80), rd(regData, 12), rd(regIER, 0)}},
		{"RBR of an empty receiver", []step{rd(regData, 0)}},
		{"IER bits 4-7 do not exist, §8.7", []step{wr(regIER, 0xFF), rd(regIER, 0x0F), wr(regIER, 0), rd(regIER, 0)}},
		{"DLL and DLM behind DLAB, §8.3", []step{
			wr(regLCR, 0x83), wr(regData, 0x34), wr(regIER, 0x12), rd(regData, 0x34), rd(regIER, 0x12),
			wr(regLCR, 0x03), rd(regIER, 0), rd(regData, 0),
			wr(regLCR, 0x80), rd(regData, 0x34), rd(regIER, 0x12)}},
		{"IIR shows FIFOs, §8.6", []step{wr(regIIR, 0x01), rd(regIIR, 0xC1), wr(regIIR, 0xC7), rd(regIIR, 0xC1), wr(regIIR, 0), rd(regIIR, 0x01)}},
		{"FCR without bit 0 programs nothing, §8.5", []step{wr(regIIR, 0xC0), rd(regIIR, 0x01)}},
		{"LCR holds all bits, §8.1", []step{wr(regLCR, 0x7F), rd(regLCR, 0x7F), wr(regLCR, 0xFF), rd(regLCR, 0xFF), wr(regLCR, 0), rd(regLCR, 0)}},
		{"MCR bits 5-7 do not exist, §8.8", []step{wr(regMCR, 0xFF), rd(regMCR, 0x1F), wr(regMCR, 0x0B), rd(regMCR, 0x0B)}},
		{"LSR is not writable, §8.4", []step{wr(regLSR, 0xFF), rd(regLSR, 0x60), wr(regLSR, 0), rd(regLSR, 0x60)}},
		{"MSR is not writable, §8.9", []step{wr(regMSR, 0xFF), rd(regMSR, 0xB0)}},
		{"SCR holds all bits, §8.10", []step{wr(regSCR, 0xA5), rd(regSCR, 0xA5), wr(regSCR, 0x5A), rd(regSCR, 0x5A)}},
		{"loopback: DTR is DSR, §8.8", []step{wr(regMCR, 0x10), rd(regMSR, 0x0B), wr(regMCR, 0x11), rd(regMSR, 0x22), rd(regMSR, 0x20)}},
		{"loopback: RTS is CTS", []step{wr(regMCR, 0x10), rd(regMSR, 0x0B), wr(regMCR, 0x12), rd(regMSR, 0x11), rd(regMSR, 0x10)}},
		{"loopback: OUT2 is DCD", []step{wr(regMCR, 0x10), rd(regMSR, 0x0B), wr(regMCR, 0x18), rd(regMSR, 0x88), rd(regMSR, 0x80)}},
		{"loopback: OUT1 is RI, its trailing edge TERI", []step{
			wr(regMCR, 0x10), rd(regMSR, 0x0B), wr(regMCR, 0x14), rd(regMSR, 0x40), wr(regMCR, 0x10), rd(regMSR, 0x04), rd(regMSR, 0x00)}},
		{"Linux's loopback probe", []step{wr(regMCR, 0x1A), rd(regMSR, 0x92), rd(regMSR, 0x90), wr(regMCR, 0), rd(regMSR, 0xB2)}},
		{"NetBSD's probe", []step{wr(regLCR, 0x03), wr(regIIR, 0), rd(regLCR, 0x03), rd(regIIR, 0x01)}},
		{"NetBSD's FIFO detection", []step{wr(regIIR, 0xC7), rd(regIIR, 0xC1), wr(regIIR, 0)}},
		{"Linux's EFR and 16750 probes find none", []step{
			wr(regIIR, 0x01), wr(regLCR, 0xBF), rd(regIIR, 0xC1), wr(regLCR, 0x80), wr(regIIR, 0x21), rd(regIIR, 0xC1)}},
		{"loopback carries data, not to the host", []step{
			wr(regMCR, 0x10), wr(regData, 'x'), rd(regLSR, 0x61), rd(regData, 'x'), rd(regLSR, 0x60)}},
		{"overrun without FIFOs keeps the last, §8.4", []step{
			wr(regMCR, 0x10), wr(regData, 'a'), wr(regData, 'b'), rd(regLSR, 0x63), rd(regLSR, 0x61), rd(regData, 'b'), rd(regLSR, 0x60)}},
		{"FCR bit 1 clears the receiver, §8.5", []step{
			wr(regMCR, 0x10), wr(regIIR, 0x01), wr(regData, 'a'), rd(regLSR, 0x61), wr(regIIR, 0x03), rd(regLSR, 0x60)}},
		{"FCR bit 2 leaves the receiver alone", []step{
			wr(regMCR, 0x10), wr(regIIR, 0x01), wr(regData, 'a'), wr(regIIR, 0x05), rd(regLSR, 0x61), rd(regData, 'a')}},
		{"turning the FIFOs off clears them", []step{
			wr(regMCR, 0x10), wr(regIIR, 0x01), wr(regData, 'a'), wr(regIIR, 0), rd(regLSR, 0x60)}},
		{"THRE interrupt when enabled, reset by IIR, §8.6", []step{
			wr(regIER, 0x02), rd(regIIR, 0x02), rd(regIIR, 0x01), wr(regData, 'a'), rd(regIIR, 0x02), rd(regIIR, 0x01)}},
		{"Linux's THRE test: enabling it again interrupts again", []step{
			wr(regIER, 0x02), rd(regIIR, 0x02), wr(regIER, 0), wr(regIER, 0x02), rd(regIIR, 0x02), wr(regIER, 0)}},
		{"writing IER as it is does not", []step{wr(regIER, 0x02), rd(regIIR, 0x02), wr(regIER, 0x02), rd(regIIR, 0x01)}},
		{"modem status interrupt, reset by MSR", []step{
			wr(regIER, 0x08), wr(regMCR, 0x10), rd(regIIR, 0x00), rd(regIIR, 0x00), rd(regMSR, 0x0B), rd(regIIR, 0x01)}},
		{"priority: line status, data, THRE, modem, §8.6 table IV", []step{
			wr(regMCR, 0x10), wr(regData, 'a'), wr(regData, 'b'), wr(regIER, 0x0F),
			rd(regIIR, 0x06), rd(regLSR, 0x63), rd(regIIR, 0x04), rd(regData, 'b'), rd(regIIR, 0x02), rd(regIIR, 0x00), rd(regMSR, 0x0B), rd(regIIR, 0x01)}},
		{"data interrupts by trigger level 4, timeout below it, §8.11", []step{
			wr(regMCR, 0x10), wr(regIIR, 0x41), wr(regIER, 0x01),
			wr(regData, '1'), rd(regIIR, 0xCC), wr(regData, '2'), wr(regData, '3'), rd(regIIR, 0xCC), wr(regData, '4'), rd(regIIR, 0xC4),
			rd(regData, '1'), rd(regIIR, 0xCC), rd(regData, '2'), rd(regData, '3'), rd(regData, '4'), rd(regIIR, 0xC1)}},
		{"trigger level 1", []step{wr(regMCR, 0x10), wr(regIIR, 0x01), wr(regIER, 0x01), wr(regData, '1'), rd(regIIR, 0xC4)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var host bytes.Buffer
			run(t, Config{Out: &host}, func(t *testing.T, u *UART, _ *pin) {
				for i, s := range c.steps {
					if !s.read {
						out(u, s.off, s.v)
					} else if got := in(u, s.off); got != s.v {
						t.Fatalf("step %d: register %d reads %#02x, want %#02x", i, s.off, got, s.v)
					}
				}
			})
		})
	}
}

func TestTriggerLevels(t *testing.T) {
	for bits, level := range map[byte]int{0x00: 1, 0x40: 4, 0x80: 8, 0xC0: 14} {
		run(t, Config{}, func(t *testing.T, u *UART, _ *pin) {
			out(u, regMCR, mcrLoop)
			out(u, regIIR, bits|fcrEnable)
			out(u, regIER, ierRx)
			for n := 1; n <= fifoSize; n++ {
				out(u, regData, byte(n))
				want := byte(iirTimeout | iirFIFOs)
				if n >= level {
					want = iirRx | iirFIFOs
				}
				if got := in(u, regIIR); got != want {
					t.Errorf("FCR %#x, %d characters: IIR %#x, want %#x", bits, n, got, want)
				}
			}
			out(u, regData, 0xEE) // overruns
			if lsr := in(u, regLSR); lsr != lsrDR|lsrOE|lsrTHRE|lsrTEMT {
				t.Errorf("LSR %#x after an overrun", lsr)
			}
			for n := 1; n <= fifoSize; n++ {
				if got := in(u, regData); got != byte(n) {
					t.Errorf("character %d is %#x: an overrun must lose the newest", n, got)
				}
			}
		})
	}
}

func TestWideAccess(t *testing.T) {
	var host bytes.Buffer
	run(t, Config{Out: &host}, func(t *testing.T, u *UART, _ *pin) {
		u.Write(regData, []byte{'A', 0x0F})
		b := []byte{0xFF, 0xFF, 0xFF, 0xFF}
		u.Read(regIER, b)
		if want := []byte{0x0F, 0x02, 0, 0}; !bytes.Equal(b, want) {
			t.Errorf("four registers read % x, want % x", b, want)
		}
		u.Read(Size, b)
		u.Write(Size, b)
		u.Write(regSCR, []byte{7, 8, 9, 10})
		if got := in(u, regSCR); got != 7 {
			t.Errorf("SCR %d", got)
		}
		b = []byte{1, 2}
		u.Read(^uint64(0), b)
		if b[0] != 1 || b[1] != 2 {
			t.Error("an access outside the range was answered")
		}
	})
	if host.String() != "A" {
		t.Errorf("host got %q", host.String())
	}
}

func TestInterruptLine(t *testing.T) {
	run(t, Config{}, func(t *testing.T, u *UART, p *pin) {
		want := func(what string, high bool, edges int) {
			t.Helper()
			if h, e := p.now(); h != high || e != edges {
				t.Fatalf("%s: line %v after %d edges, want %v after %d", what, h, e, high, edges)
			}
		}
		out(u, regIER, ierTx)
		want("without OUT2", false, 0)
		out(u, regMCR, mcrOUT2)
		want("OUT2 opens the gate", true, 1)
		in(u, regIIR)
		want("IIR acknowledges THRE", false, 1)
		out(u, regData, 'a')
		want("THR is empty again", true, 2)
		out(u, regData, 'b')
		want("a write to THR serves and renews", true, 3)
		u.WriteMany(regData, []byte("0123456789abcdef"))
		want("a string is one cause", true, 4)
		out(u, regIER, 0)
		want("disabled", false, 4)
		out(u, regIER, ierRx|ierLine)
		u.Input([]byte("x"))
		want("a character", true, 5)
		in(u, regIIR)
		want("IIR does not serve it", true, 5)
		out(u, regMCR, mcrOUT2|mcrLoop)
		want("loopback cuts the pin off", false, 5)
		out(u, regMCR, mcrOUT2)
		want("and gives it back", true, 6)
		in(u, regData)
		want("read", false, 6)
	})
}

// TestInputPace: input comes in FIFO-sized bursts, each with an edge of its own
// once the guest has emptied the one before.
func TestInputPace(t *testing.T) {
	const text = "the quick brown fox jumps over the lazy dog"
	run(t, Config{In: strings.NewReader(text)}, func(t *testing.T, u *UART, p *pin) {
		out(u, regIIR, 0xC1)
		out(u, regMCR, mcrOUT2)
		out(u, regIER, ierRx)
		var got []byte
		for len(got) < len(text) {
			time.Sleep(fifoSize * charTime) // the bubble's clock: the wire's next burst
			if h, _ := p.now(); !h {
				t.Fatalf("no interrupt after %q", got)
			}
			n := 0
			for in(u, regLSR)&lsrDR != 0 {
				got = append(got, in(u, regData))
				n++
			}
			if n > fifoSize+1 { // one more has arrived while the FIFO was read
				t.Fatalf("a burst of %d: a driver's flush would eat all input", n)
			}
			if h, _ := p.now(); h {
				t.Fatal("line high with nothing to read")
			}
		}
		if string(got) != text {
			t.Errorf("got %q", got)
		}
		synctest.Wait()
		if s := u.Stats(); s.InErr != io.EOF || s.Received != uint64(len(text)) {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestOneCharacterPerInterrupt: a driver that takes one character an interrupt
// gets an edge for the next one.
func TestOneCharacterPerInterrupt(t *testing.T) {
	for _, fcr := range []byte{0, fcrEnable, 0xC1} {
		run(t, Config{}, func(t *testing.T, u *UART, p *pin) {
			out(u, regIIR, fcr)
			out(u, regMCR, mcrOUT2)
			out(u, regIER, ierRx)
			u.Input([]byte("abc"))
			var got []byte
			_, served := p.now()
			served--
			for range 10 {
				time.Sleep(3 * charTime)
				h, e := p.now()
				if e == served && fcr&0xC0 != 0 || !h {
					break
				}
				served = e
				got = append(got, in(u, regData))
			}
			if string(got) != "abc" {
				t.Errorf("FCR %#x: got %q", fcr, got)
			}
		})
	}
}

func TestInputBounded(t *testing.T) {
	run(t, Config{In: neverEnding{}}, func(t *testing.T, u *UART, _ *pin) {
		in(u, regLSR)
		time.Sleep(time.Second)
		u.mu.Lock()
		held := len(u.host.held)
		u.mu.Unlock()
		if held == 0 || held > inChunk {
			t.Errorf("%d characters held", held)
		}
		if n := u.Input(make([]byte, 1<<20)); n > inChunk {
			t.Errorf("Input took %d", n)
		}
		for u.InjectBreak() {
			if len(u.host.held) > heldMax {
				t.Fatal("breaks without bound")
			}
		}
		if n := u.Input([]byte{1}); n != 0 {
			t.Errorf("Input took %d with everything full", n)
		}
	})
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestBreak(t *testing.T) {
	run(t, Config{}, func(t *testing.T, u *UART, p *pin) {
		out(u, regIIR, 0x01)
		out(u, regMCR, mcrOUT2)
		out(u, regIER, ierLine)
		u.Input([]byte("a"))
		time.Sleep(charTime)
		if !u.InjectBreak() {
			t.Fatal("no room for a break")
		}
		if got := in(u, regLSR); got != lsrDR|lsrTHRE|lsrTEMT|lsrFIFO {
			t.Errorf("LSR %#x with the break behind a character", got)
		}
		if in(u, regData) != 'a' {
			t.Error("lost the character before")
		}
		if h, _ := p.now(); !h || in(u, regIIR) != iirLine|iirFIFOs {
			t.Error("a break at the top makes no line status interrupt")
		}
		if got := in(u, regLSR); got != lsrDR|lsrBI|lsrTHRE|lsrTEMT|lsrFIFO {
			t.Errorf("LSR %#x with the break at the top", got)
		}
		if got := in(u, regLSR); got != lsrDR|lsrTHRE|lsrTEMT {
			t.Errorf("LSR %#x after it was read", got)
		}
		if h, _ := p.now(); h || in(u, regData) != 0 {
			t.Error("a break is a zero character, and reading LSR serves it")
		}
	})
}
