package uart

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestOutputInOrder(t *testing.T) {
	var host bytes.Buffer
	first := 0
	var sent bytes.Buffer
	run(t, Config{Out: &host, OnFirstByte: func() { first++ }}, func(t *testing.T, u *UART, _ *pin) {
		out(u, regLCR, 0x80)
		out(u, regData, 1) // the divisor is no output
		out(u, regLCR, 0x03)
		if first != 0 {
			t.Error("OnFirstByte before any output")
		}
		for i := range 3000 {
			c := byte(i)
			sent.WriteByte(c)
			out(u, regData, c)
			if i%7 == 0 {
				many := []byte("rep outsb")
				sent.Write(many)
				u.WriteMany(regData, many)
			}
		}
		u.WriteMany(regSCR, []byte{1, 2, 3})
		if got := in(u, regSCR); got != 3 {
			t.Errorf("SCR %d after a string of three", got)
		}
		u.WriteMany(99, []byte{1})
		u.WriteMany(regData, nil)
	})
	if first != 1 {
		t.Errorf("OnFirstByte called %d times", first)
	}
	if !bytes.Equal(host.Bytes(), sent.Bytes()) {
		t.Errorf("host got %d bytes, guest sent %d, or they differ", host.Len(), sent.Len())
	}
}

// slowWriter takes a Write only when let.
type slowWriter struct {
	let chan struct{}
	got bytes.Buffer
}

func (w *slowWriter) Write(p []byte) (int, error) {
	<-w.let
	return w.got.Write(p)
}

func TestBackPressure(t *testing.T) {
	w := &slowWriter{}
	run(t, Config{Out: w}, func(t *testing.T, u *UART, p *pin) {
		w.let = make(chan struct{}) // of the bubble, so that waiting for it is idle
		out(u, regMCR, mcrOUT2)
		out(u, regData, '0')
		synctest.Wait() // the writer is stuck with one byte
		n := 1
		for in(u, regLSR)&lsrTHRE != 0 {
			if in(u, regLSR)&lsrTEMT == 0 {
				t.Fatal("TEMT and THRE differ")
			}
			u.WriteMany(regData, make([]byte, fifoSize))
			n += fifoSize
			if n > 1<<20 {
				t.Fatal("no bound")
			}
		}
		out(u, regIER, ierTx)
		if h, _ := p.now(); h || in(u, regIIR) != iirNone {
			t.Error("THRE interrupt with THR full")
		}
		// A driver whose patience is at its end writes all the same.
		u.WriteMany(regData, make([]byte, 2*fifoSize))
		s := u.Stats()
		if s.Dropped == 0 || s.Dropped > 2*fifoSize {
			t.Errorf("dropped %d", s.Dropped)
		}
		n += 2*fifoSize - int(s.Dropped)
		w.let <- struct{}{}
		synctest.Wait()
		if h, e := p.now(); !h || e != 1 || in(u, regIIR) != iirTx {
			t.Errorf("no THRE interrupt when the writer went on: line %v, %d edges", h, e)
		}
		close(w.let)
		synctest.Wait()
		if w.got.Len() != n || u.Stats().Sent != uint64(n) {
			t.Errorf("host got %d bytes of %d", w.got.Len(), n)
		}
	})
}

func TestStuckWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &slowWriter{let: make(chan struct{})}
		u := New(Config{Out: w, FlushTimeout: 5 * time.Second})
		out(u, regData, '0')
		synctest.Wait()
		u.WriteMany(regData, []byte("stuck"))
		start := time.Now()
		err := u.Close()
		if err == nil || !strings.Contains(err.Error(), "6 bytes") {
			t.Errorf("Close: %v", err)
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("Close took %v", d)
		}
		out(u, regData, 'x')
		if u.Input([]byte("x")) != 0 || u.InjectBreak() || u.Resume() == nil {
			t.Error("a closed UART goes on")
		}
		if err := u.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		close(w.let) // the goroutine ends, or the bubble complains
		synctest.Wait()
		if s := u.Stats(); s.Sent != 1 || s.Dropped != 6 {
			t.Errorf("stats %+v", s)
		}
	})
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write(p []byte) (int, error) { return len(p) / 2, w.err }

func TestWriterErrors(t *testing.T) {
	gone := errors.New("gone")
	for _, c := range []struct{ give, want error }{{gone, gone}, {nil, io.ErrShortWrite}} {
		run(t, Config{Out: brokenWriter{c.give}}, func(t *testing.T, u *UART, _ *pin) {
			u.WriteMany(regData, []byte("0123"))
			synctest.Wait()
			if s := u.Stats(); s.Sent != 2 || s.Dropped != 2 || !errors.Is(s.OutErr, c.want) {
				t.Errorf("stats %+v", s)
			}
			if in(u, regLSR)&lsrTHRE == 0 {
				t.Error("the guest hangs on a broken console")
			}
		})
	}
}

// countWriter counts Writes and their bytes.
type countWriter struct{ writes, bytes atomic.Int64 }

func (w *countWriter) Write(p []byte) (int, error) {
	w.writes.Add(1)
	w.bytes.Add(int64(len(p)))
	return len(p), nil
}

func TestBatching(t *testing.T) {
	w := &countWriter{}
	run(t, Config{Out: w}, func(t *testing.T, u *UART, _ *pin) {
		out(u, regData, 'a')
		synctest.Wait()
		if w.bytes.Load() != 1 {
			t.Error("the first byte waits")
		}
		for range 1000 {
			out(u, regData, 'b')
		}
		synctest.Wait()
		if w.writes.Load() != 1 {
			t.Errorf("%d writes within the linger", w.writes.Load())
		}
		time.Sleep(linger)
		synctest.Wait()
		if w.writes.Load() != 2 || w.bytes.Load() != 1001 {
			t.Errorf("%d writes of %d bytes after it", w.writes.Load(), w.bytes.Load())
		}
		time.Sleep(2 * linger)
		synctest.Wait()
		out(u, regData, 'c')
		synctest.Wait()
		if w.writes.Load() != 3 {
			t.Error("a byte after a silence waits")
		}
		// Half a buffer is written without waiting for the clock.
		u.WriteMany(regData, make([]byte, txHalf/2))
		synctest.Wait()
		if w.bytes.Load() != 1002+txHalf/2 {
			t.Errorf("%d bytes", w.bytes.Load())
		}
	})
}

// TestFirstByteInString: OnFirstByte sees a string output too, and not what is
// looped back.
func TestFirstByteInString(t *testing.T) {
	first := 0
	run(t, Config{OnFirstByte: func() { first++ }}, func(t *testing.T, u *UART, _ *pin) {
		out(u, regMCR, mcrLoop)
		u.WriteMany(regData, []byte("looped"))
		out(u, regMCR, 0)
		if first != 0 {
			t.Error("called for loopback")
		}
		u.WriteMany(regData, []byte("ab"))
		u.WriteMany(regData, []byte("cd"))
		if first != 1 || u.Stats().Sent != 4 {
			t.Errorf("called %d times, %d sent", first, u.Stats().Sent)
		}
	})
}

// TestCloseQuiesced: what Quiesce could not write is the state's; Close says
// that it is lost here, once the writer has let go.
func TestCloseQuiesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &slowWriter{let: make(chan struct{})}
		u := New(Config{Out: w})
		out(u, regData, '0')
		synctest.Wait()
		u.WriteMany(regData, []byte("kept"))
		if err := u.Quiesce(); err != nil {
			t.Fatal(err)
		}
		if state, err := u.State(); err != nil || !strings.Contains(string(state), `"Unsent":"a2VwdA=="`) {
			t.Errorf("state %s, %v", state, err)
		}
		close(w.let)
		if err := u.Close(); err == nil || !strings.Contains(err.Error(), "4 bytes") {
			t.Errorf("Close: %v", err)
		}
		if w.got.String() != "0" {
			t.Errorf("a quiesced UART wrote %q", w.got.String())
		}
	})
}
