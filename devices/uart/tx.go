package uart

import (
	"fmt"
	"io"
	"time"
)

const (
	// txHalf is the size in bytes of each of the two output buffers: one takes
	// what the guest writes while the other is being written out.
	txHalf = 32 << 10
	// txRoom is how much room THRE = 1 promises: a driver fills a whole FIFO
	// after seeing it once (PC16550D §8.12).
	txRoom = fifoSize
	// linger is how long the writer goroutine gathers more after a write before
	// it writes again. The first byte after a silence goes out at once; in a
	// long print the guest's vCPU wakes no one.
	linger = time.Millisecond
)

// txHost is the way out to the host.
type txHost struct {
	front []byte // gathers what the guest writes
	back  []byte // is being written
	full  bool   // front has no room for a FIFO: THRE is 0 until it is taken

	wake      chan struct{} // a token for the goroutine
	done      chan struct{} // closed when the goroutine has ended
	idle      bool          // it waits for a first byte
	lingering bool          // it gathers
	writing   bool          // it is in Out.Write
	flushing  bool          // someone waits for everything to be out
	hold      bool          // it must not take more: the device is quiesced
	started   bool          // the guest has sent something
	reported  bool          // OnFirstByte has been called
}

func (u *UART) startTx() {
	if u.out == nil {
		return
	}
	u.tx.front = make([]byte, 0, txHalf)
	u.tx.back = make([]byte, 0, txHalf)
	u.tx.wake = make(chan struct{}, 1)
	u.tx.done = make(chan struct{})
	go u.drain()
}

// txReady is what THRE shows.
func (u *UART) txReady() bool { return !u.tx.full || u.mcr&mcrLoop != 0 }

// send takes characters written to THR. The lock is held.
func (u *UART) send(p []byte) {
	t := &u.tx
	t.started = true
	switch {
	case u.out == nil:
		u.stats.Sent += uint64(len(p))
	case u.closed:
		u.stats.Dropped += uint64(len(p))
	default:
		n := min(len(p), txHalf-len(t.front))
		t.front = append(t.front, p[:n]...)
		u.stats.Dropped += uint64(len(p) - n)
		t.full = len(t.front) > txHalf-txRoom
		u.kick()
	}
	u.sent()
}

// sent renews the THRE interrupt after a write to THR: the write resets it
// (PC16550D §8.6), and as soon as THR is empty again it is pending anew.
func (u *UART) sent() {
	u.thre = false
	if u.ier&ierTx != 0 {
		u.update()
	}
	u.thre = u.txReady()
	if u.ier&ierTx != 0 {
		u.update()
	}
}

// kick wakes the writer goroutine if there is a reason to. The lock is held.
func (u *UART) kick() {
	t := &u.tx
	switch {
	case u.out == nil:
		return
	case t.idle && (len(t.front) > 0 || u.closed):
		t.idle = false
	case t.lingering && (len(t.front) >= txHalf/2 || t.flushing || u.closed):
		t.lingering = false
	default:
		return
	}
	select {
	case t.wake <- struct{}{}:
	default: // a token is there already
	}
}

// firstByte gives OnFirstByte the first time after the guest has sent
// something. The lock is held; the caller calls it without.
func (u *UART) firstByte() func() {
	if !u.tx.started || u.tx.reported {
		return nil
	}
	u.tx.reported = true
	return u.onFirst
}

// drain is the writer goroutine: it takes all there is at once and writes it.
func (u *UART) drain() {
	t := &u.tx
	defer close(t.done)
	timer := time.NewTimer(linger)
	timer.Stop()
	u.mu.Lock()
	defer u.mu.Unlock()
	for {
		for len(t.front) == 0 || t.hold {
			if u.closed {
				return
			}
			t.idle = true
			u.mu.Unlock()
			<-t.wake
			u.mu.Lock()
			t.idle = false
		}
		t.front, t.back = t.back[:0], t.front
		if t.full {
			// The line moves again: THR is empty, which is a new interrupt.
			t.full = false
			u.thre = true
			u.update()
		}
		t.writing = true
		u.mu.Unlock()
		n, err := u.out.Write(t.back)
		u.mu.Lock()
		t.writing = false
		u.wrote(n, err)
		u.changed.Broadcast()
		if u.closed || t.flushing || len(t.front) >= txHalf/2 {
			continue
		}
		t.lingering = true
		u.mu.Unlock()
		timer.Reset(linger)
		select {
		case <-timer.C:
		case <-t.wake:
			timer.Stop()
		}
		u.mu.Lock()
		t.lingering = false
	}
}

// wrote counts what Out took of back.
func (u *UART) wrote(n int, err error) {
	total := len(u.tx.back)
	n = max(0, min(n, total))
	if n < total && err == nil {
		err = io.ErrShortWrite
	}
	u.stats.Sent += uint64(n)
	u.stats.Dropped += uint64(total - n)
	if err != nil && u.stats.OutErr == nil {
		u.stats.OutErr = err
	}
}

// flush waits until all output has been written, or until end.
func (u *UART) flush(end time.Time) {
	t := &u.tx
	t.flushing = true
	u.kick()
	u.waitUntil(end, func() bool { return len(t.front) == 0 && !t.writing })
	t.flushing = false
}

// closeTx ends the writer goroutine. The lock is held.
func (u *UART) closeTx(end time.Time) error {
	t := &u.tx
	if u.out == nil {
		return nil
	}
	lost := len(t.front)
	u.stats.Dropped += uint64(lost)
	t.front = t.front[:0]
	if t.writing {
		// flush has waited already; a caller that quiesced has not.
		u.waitUntil(end, func() bool { return !t.writing })
	}
	u.kick()
	if t.writing {
		return fmt.Errorf("uart: the console's writer is stuck: up to %d bytes of output are lost; close or read its other end",
			lost+len(t.back))
	}
	u.mu.Unlock()
	<-t.done
	u.mu.Lock()
	if lost > 0 {
		return fmt.Errorf("uart: %d bytes of console output are lost: the writer was too slow", lost)
	}
	return nil
}
