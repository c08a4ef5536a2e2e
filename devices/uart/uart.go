// Package uart is a serial port as a PC has it: National Semiconductor's
// PC16550D ("16550A", datasheet of June 1995; the sections named here are its),
// with its host side an io.Writer and an io.Reader.
//
// Two things differ from the chip, and neither can be told from a fast wire.
// A character written to THR has left at once, so THRE and TEMT stay set while
// the host keeps up; the FIFO behind THR is an output buffer of 64 KiB in two
// halves, which a goroutine of the UART's own empties, and when a slow host lets
// its half fill, THRE and TEMT go to zero as on hardware whose line is held.
// Received characters come in bursts of as many as fit, at the pace of 115,200
// baud, and after each burst the wire is quiet: the character timeout of §8.11
// holds as soon as fewer characters than the trigger level are left.
package uart

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/smolvmm/smolvmm/devices"
)

// Config is the UART's wiring. It may be zero: such a UART discards output, has
// no input but Input's and interrupts no one.
type Config struct {
	// Out gets what the guest sends, in order, from one goroutine. A Write that
	// blocks holds the guest's output back, never its vCPUs. An error loses the
	// bytes it did not take; it is counted (Stats) and the next Write is tried
	// all the same.
	Out io.Writer
	// In is read only as fast as the guest takes characters: at most 512 bytes
	// wait here. It ends at the first error. The caller owns it. When it has a
	// working SetReadDeadline(time.Time) error, as a non-blocking *os.File and
	// every net.Conn have, Quiesce and Close stop a Read at once; otherwise the
	// one goroutine that sits in Read ends only when the caller makes Read
	// return, by closing In.
	In io.Reader
	// Line is the interrupt pin, ISA 4 for COM1. It is set while the UART's
	// lock is held, and must not call back.
	Line devices.Line
	// OnFirstByte is called once, when the guest first sends a character, on
	// the vCPU that does.
	OnFirstByte func()
	// FlushTimeout bounds Quiesce and Close when Out is stuck; 0 is one second.
	FlushTimeout time.Duration
}

// Stats are counts since New.
type Stats struct {
	Sent     uint64 // characters Out has taken
	Dropped  uint64 // characters written while THRE was 0 and no room was left, or that Out refused
	Received uint64 // characters put into the receiver FIFO from the host
	OutErr   error  // the first error of Out
	InErr    error  // what ended In, io.EOF if it just ended
}

// UART is one serial port. It is a devices.Region of Size ports and
// devices.Stateful.
type UART struct {
	out     io.Writer
	in      io.Reader
	onFirst func()
	timeout time.Duration

	mu      sync.Mutex
	changed *sync.Cond // a write or a read of the host side has ended, or the life cycle moved on

	line  devices.Line
	level bool // what line was last set to

	ier, fcr, lcr, mcr, scr byte
	dll, dlm                byte
	msrDelta                byte // MSR bits 3:0
	lsrErr                  byte // OE and BI, latched until LSR is read
	thre                    bool // the THRE interrupt is pending, enabled or not

	rx     [fifoSize]rxChar
	rxHead int
	rxLen  int

	host rxHost
	tx   txHost

	stopped bool // between Quiesce and Resume
	closed  bool
	stats   Stats
}

// rxChar is a character with the LSR error bits it came with in its high byte.
type rxChar uint16

// New makes a UART as after a reset. Its goroutines, one that writes Out and,
// from the first access or Resume on, one that reads In, are ended by Close.
func New(c Config) *UART {
	u := &UART{
		out: c.Out, in: c.In, onFirst: c.OnFirstByte, line: c.Line, timeout: c.FlushTimeout,
		dll: resetDivisor,
	}
	if u.line == nil {
		u.line = nowhere{}
	}
	if u.timeout <= 0 {
		u.timeout = time.Second
	}
	u.changed = sync.NewCond(&u.mu)
	u.thre = true
	u.startTx()
	u.host.init(u)
	return u
}

type nowhere struct{}

func (nowhere) Set(bool) {}

// Read answers an access; one wider than a byte reads the registers one after
// the other, as the ISA bus splits it.
func (u *UART) Read(off uint64, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.startRx()
	for i := range p {
		if off >= Size {
			return
		}
		p[i] = u.readReg(off)
		off++
	}
}

// Write takes an access; one wider than a byte writes the registers one after
// the other.
func (u *UART) Write(off uint64, p []byte) {
	u.mu.Lock()
	u.startRx()
	for _, v := range p {
		if off >= Size {
			break
		}
		u.writeReg(off, v)
		off++
	}
	first := u.firstByte()
	u.mu.Unlock()
	if first != nil {
		first()
	}
}

// ManyWriter is what a device implements to take a string output (REP OUTSB) in
// one call: len(p) byte writes to the same port, in order.
type ManyWriter interface {
	WriteMany(off uint64, p []byte)
}

var _ ManyWriter = (*UART)(nil)

// WriteMany writes every byte of p to the register at off.
func (u *UART) WriteMany(off uint64, p []byte) {
	if off >= Size {
		return
	}
	u.mu.Lock()
	if off == regData && u.lcr&lcrDLAB == 0 && u.mcr&mcrLoop == 0 {
		if len(p) > 0 {
			u.send(p)
		}
	} else {
		for _, v := range p {
			u.writeReg(off, v)
		}
	}
	first := u.firstByte()
	u.mu.Unlock()
	if first != nil {
		first()
	}
}

// readReg is a read of one register. The lock is held.
func (u *UART) readReg(off uint64) byte {
	switch off {
	case regData:
		if u.lcr&lcrDLAB != 0 {
			return u.dll
		}
		return u.readRBR()
	case regIER:
		if u.lcr&lcrDLAB != 0 {
			return u.dlm
		}
		return u.ier
	case regIIR:
		return u.readIIR()
	case regLCR:
		return u.lcr
	case regMCR:
		return u.mcr
	case regLSR:
		return u.readLSR()
	case regMSR:
		v := u.modemInputs() | u.msrDelta
		u.msrDelta = 0
		u.update()
		return v
	default:
		return u.scr
	}
}

// writeReg is a write to one register. The lock is held.
func (u *UART) writeReg(off uint64, v byte) {
	switch off {
	case regData:
		if u.lcr&lcrDLAB != 0 {
			u.dll = v
			return
		}
		if u.mcr&mcrLoop != 0 {
			u.loopBack(v)
			return
		}
		u.send([]byte{v})
	case regIER:
		if u.lcr&lcrDLAB != 0 {
			u.dlm = v
			return
		}
		u.writeIER(v)
	case regIIR:
		u.writeFCR(v)
	case regLCR:
		u.lcr = v
	case regMCR:
		u.writeMCR(v)
	case regSCR:
		u.scr = v
	}
	// LSR and MSR are for reading; the chip's factory-test writes (§8.4) are not modelled.
}

// cause gives the IIR code of the most urgent cause among those that ier
// enables (PC16550D §8.6, table IV).
func (u *UART) cause(ier byte) byte {
	switch {
	case ier&ierLine != 0 && u.lsrErr != 0:
		return iirLine
	case ier&ierRx != 0 && u.rxLen >= u.trigger():
		return iirRx
	case ier&ierRx != 0 && u.rxLen > 0:
		return iirTimeout
	case ier&ierTx != 0 && u.thre:
		return iirTx
	case ier&ierModem != 0 && u.msrDelta != 0:
		return iirModem
	}
	return iirNone
}

// update sets the interrupt line to what is pending.
func (u *UART) update() { u.setLine(u.cause(u.ier) != iirNone) }

// dip takes the causes that the bits of ier enable away and puts them back: what
// they stand for was served and has come again, so that the edge-triggered pin
// must see its level fall, if nothing else holds it up.
func (u *UART) dip(ier byte) {
	u.setLine(u.cause(u.ier&^ier) != iirNone)
	u.update()
}

// setLine drives the pin. A PC gates it with OUT2, which is inactive in
// loopback (PC16550D §8.8).
func (u *UART) setLine(pending bool) {
	level := pending && u.mcr&(mcrOUT2|mcrLoop) == mcrOUT2
	if level != u.level {
		u.level = level
		u.line.Set(level)
	}
}

func (u *UART) readIIR() byte {
	v := u.cause(u.ier)
	if v == iirTx {
		// Reading IIR resets the THRE interrupt if it is the one shown (§8.6).
		u.thre = false
		u.update()
	}
	if u.fcr&fcrEnable != 0 {
		v |= iirFIFOs
	}
	return v
}

func (u *UART) writeIER(v byte) {
	v &= ierMask
	if v&^u.ier&ierTx != 0 && u.txReady() {
		// Enabling it while THR is empty interrupts at once (§8.7); drivers
		// start their output so.
		u.thre = true
	}
	u.ier = v
	u.update()
}

func (u *UART) writeFCR(v byte) {
	if (v^u.fcr)&fcrEnable != 0 || v&fcrEnable != 0 && v&fcrRxReset != 0 {
		u.rxHead, u.rxLen = 0, 0
	}
	// A transmitter reset finds its FIFO empty: what THR took has left.
	// Without bit 0 the other bits are not programmed (§8.5).
	u.fcr = 0
	if v&fcrEnable != 0 {
		u.fcr = v & fcrKept
	}
	u.update()
	u.deliver()
}

func (u *UART) writeMCR(v byte) {
	before := u.modemInputs()
	u.mcr = v & mcrMask
	after := u.modemInputs()
	u.msrDelta |= modemDelta(before, after)
	u.update()
	u.deliver()
}

// modemInputs are MSR bits 7:4: the connected host, or MCR in loopback.
func (u *UART) modemInputs() byte {
	if u.mcr&mcrLoop == 0 {
		return msrConnected
	}
	var v byte
	for _, w := range loopWires {
		if u.mcr&w.out != 0 {
			v |= w.in
		}
	}
	return v
}

// loopWires joins MCR's outputs to MSR's inputs in loopback (PC16550D §8.8).
var loopWires = [4]struct{ out, in byte }{
	{mcrDTR, msrDSR},
	{mcrRTS, msrCTS},
	{mcrOUT1, msrRI},
	{mcrOUT2, msrDCD},
}

// modemDelta is what MSR bits 3:0 gain when the inputs change (PC16550D §8.9).
func modemDelta(before, after byte) byte {
	d := (before ^ after) >> 4 & msrDeltas
	if after&msrRI != 0 {
		d &^= msrTERI // a trailing edge only
	}
	return d
}

// Stats gives the counts so far.
func (u *UART) Stats() Stats {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.stats
}

// Quiesce writes out what is pending, waiting no longer than FlushTimeout for a
// stuck writer, and stops taking input. What could not be written goes into the
// state; bytes inside a stuck Write count as written.
func (u *UART) Quiesce() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stopped || u.closed {
		return nil
	}
	u.stopped = true
	end := time.Now().Add(u.timeout)
	u.stopRx(end)
	u.flush(end)
	u.tx.hold = true
	return nil
}

// Resume goes on. It sets the interrupt line to the UART's state, which a
// restored machine has not seen yet.
func (u *UART) Resume() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return fmt.Errorf("uart: resumed after Close")
	}
	u.stopped = false
	u.tx.hold = false
	u.kick()
	u.startRx()
	u.resumeRx()
	u.update()
	u.deliver()
	return nil
}

// Close writes out what is pending, as Quiesce does, and ends the goroutines. A
// writer that stays stuck is an error that says how much was lost; its goroutine
// ends when the caller's Write returns. Out and In stay the caller's to close.
func (u *UART) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil
	}
	end := time.Now().Add(u.timeout)
	if !u.stopped {
		u.stopped = true
		u.stopRx(end)
		u.flush(end)
	}
	u.closed = true
	u.closeRx(end)
	return u.closeTx(end)
}

// waitUntil waits for done, or for the time end, and says whether done holds.
// The lock is held, and given up while waiting.
func (u *UART) waitUntil(end time.Time, done func() bool) bool {
	if done() {
		return true
	}
	t := time.AfterFunc(time.Until(end), func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.changed.Broadcast()
	})
	defer t.Stop()
	for !done() {
		if !time.Now().Before(end) {
			return false
		}
		u.changed.Wait()
	}
	return true
}
