package uart

import (
	"errors"
	"os"
	"time"
)

const (
	// inChunk is how many bytes one Read of In asks for, and how many Input
	// leaves waiting.
	inChunk = 512
	// heldMax is the most characters that ever wait for room in the FIFO: a
	// chunk from In on top of what Input left.
	heldMax = 2 * inChunk
	// charTime is ten bits at 115,200 baud: the pace at which characters
	// arrive. A driver that flushes its input at open thus finds an end to it.
	charTime = time.Second * 10 / 115200
)

// rxHost is the way in from the host.
type rxHost struct {
	held     []rxChar // waits for room in the FIFO, at most heldMax
	next     time.Time
	timer    *time.Timer
	armed    bool
	reading  bool          // the goroutine is in In.Read
	done     chan struct{} // closed when the goroutine has ended
	deadline bool          // In's read deadline has been set to stop a Read
}

type readDeadliner interface {
	SetReadDeadline(t time.Time) error
}

func (h *rxHost) init(u *UART) {
	h.timer = time.AfterFunc(time.Hour, func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		h.armed = false
		u.deliver()
	})
	h.timer.Stop()
}

// startRx starts the reader goroutine, once. A UART that is going to be restored
// must not have taken input already, so New is too early. The lock is held.
func (u *UART) startRx() {
	if u.in == nil || u.host.done != nil || u.closed {
		return
	}
	u.host.done = make(chan struct{})
	go u.pull()
}

// Input gives the guest bytes as if they had come over the wire, and says how
// many were taken: at most 512 wait for the guest at a time. It never blocks.
func (u *UART) Input(p []byte) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return 0
	}
	n := min(len(p), max(0, inChunk-len(u.host.held)))
	u.hold(p[:n])
	return n
}

// InjectBreak sends the guest a break (LSR.BI with a zero character, PC16550D
// §8.4), behind what waits already. It is false when too much waits.
func (u *UART) InjectBreak() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || len(u.host.held) >= inChunk {
		return false
	}
	u.host.held = append(u.host.held, rxChar(lsrBI)<<8)
	u.deliver()
	return true
}

// hold queues bytes for the guest. The lock is held.
func (u *UART) hold(p []byte) {
	for _, c := range p {
		u.host.held = append(u.host.held, rxChar(c))
	}
	u.deliver()
}

// deliver moves what waits into the FIFO, as far as there is room, the wire is
// not looped back and the pace allows. Everything that changes one of these
// calls it. The lock is held.
func (u *UART) deliver() {
	h := &u.host
	n := min(len(h.held), u.rxSize()-u.rxLen)
	if n <= 0 || u.stopped || u.mcr&mcrLoop != 0 {
		return
	}
	now := time.Now()
	if wait := h.next.Sub(now); wait > 0 {
		if !h.armed {
			h.armed = true
			h.timer.Reset(wait)
		}
		return
	}
	h.next = now.Add(time.Duration(n) * charTime)
	for _, c := range h.held[:n] {
		u.receive(c)
	}
	h.held = h.held[:copy(h.held, h.held[n:])]
	u.stats.Received += uint64(n)
	if len(h.held) == 0 {
		u.changed.Broadcast()
	}
	u.update()
}

// rxSize is how many characters the receiver holds: with FIFOs 16, without one.
func (u *UART) rxSize() int {
	if u.fcr&fcrEnable != 0 {
		return fifoSize
	}
	return 1
}

// trigger is how many characters make the received-data interrupt.
func (u *UART) trigger() int {
	if u.fcr&fcrEnable != 0 {
		return triggerLevel[u.fcr>>6]
	}
	return 1
}

// receive puts a character into the receiver. When it is full, the overrun
// loses this one with FIFOs, and the one before without (PC16550D §8.4 bit 1).
func (u *UART) receive(c rxChar) {
	if u.rxLen == u.rxSize() {
		u.lsrErr |= lsrOE
		if u.fcr&fcrEnable == 0 {
			u.rx[u.rxHead] = c
			u.latch()
		}
		return
	}
	u.rx[(u.rxHead+u.rxLen)%fifoSize] = c
	u.rxLen++
	if u.rxLen == 1 {
		u.latch()
	}
}

// latch shows in LSR the errors of the character that has come to the top of
// the FIFO (PC16550D §8.4, bits 2 to 4).
func (u *UART) latch() { u.lsrErr |= byte(u.rx[u.rxHead]>>8) & lsrErrors }

func (u *UART) readRBR() byte {
	if u.rxLen == 0 {
		return 0
	}
	v := byte(u.rx[u.rxHead])
	u.rxHead = (u.rxHead + 1) % fifoSize
	u.rxLen--
	if u.rxLen > 0 {
		u.latch()
	}
	if u.rxLen < u.trigger() {
		// Reading resets the character timeout (§8.11), and what is left
		// makes a new one.
		u.dip(ierRx)
	} else {
		u.update()
	}
	u.deliver()
	return v
}

func (u *UART) readLSR() byte {
	v := u.lsrErr
	if u.rxLen > 0 {
		v |= lsrDR
	}
	if u.txReady() {
		v |= lsrTHRE | lsrTEMT
	}
	if u.fcr&fcrEnable != 0 {
		for i := range u.rxLen {
			if u.rx[(u.rxHead+i)%fifoSize]>>8 != 0 {
				v |= lsrFIFO
				break
			}
		}
	}
	// Reading resets the errors, of which those of the top character are shown.
	if u.lsrErr != 0 {
		u.lsrErr = 0
		if u.rxLen > 0 {
			u.rx[u.rxHead] &= 0xFF
		}
		u.update()
	}
	return v
}

// loopBack is a write to THR in loopback: the character arrives at once
// (PC16550D §8.8).
func (u *UART) loopBack(v byte) {
	u.receive(rxChar(v))
	u.sent()
	u.update()
}

// pull is the reader goroutine.
func (u *UART) pull() {
	h := &u.host
	defer close(h.done)
	buf := make([]byte, inChunk)
	u.mu.Lock()
	defer u.mu.Unlock()
	for {
		for !u.closed && (u.stopped || len(h.held) > 0) {
			u.changed.Wait()
		}
		if u.closed {
			return
		}
		h.reading = true
		u.mu.Unlock()
		n, err := u.in.Read(buf)
		u.mu.Lock()
		h.reading = false
		u.hold(buf[:n])
		u.changed.Broadcast()
		if err != nil && !(h.deadline && errors.Is(err, os.ErrDeadlineExceeded)) {
			u.stats.InErr = err
			return
		}
	}
}

// stopRx makes a running Read return, where In can do that; the UART is stopped,
// so that no new one starts. The lock is held.
func (u *UART) stopRx(end time.Time) {
	h := &u.host
	h.timer.Stop()
	h.armed = false
	d, ok := u.in.(readDeadliner)
	if !ok || !h.reading {
		return
	}
	h.deadline = true
	if d.SetReadDeadline(time.Unix(1, 0)) != nil {
		h.deadline = false
		return
	}
	u.waitUntil(end, func() bool { return !h.reading })
}

// resumeRx lets Read block again. The lock is held.
func (u *UART) resumeRx() {
	if u.host.deadline {
		u.host.deadline = false
		// It was set once before, so this succeeds; if not, Read says why.
		_ = u.in.(readDeadliner).SetReadDeadline(time.Time{})
	}
	u.changed.Broadcast()
}

// closeRx ends the reader goroutine, where In can be stopped. The lock is held.
func (u *UART) closeRx(end time.Time) {
	h := &u.host
	u.changed.Broadcast()
	if h.done == nil || h.reading {
		return
	}
	u.mu.Unlock()
	<-h.done
	u.mu.Lock()
	u.resumeRx() // the caller gets In back as it was
}
