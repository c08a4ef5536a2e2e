package uart

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestStateRoundTrip moves a UART with everything in it to a new one.
func TestStateRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &slowWriter{let: make(chan struct{})}
		old := New(Config{Out: w})
		out(old, regIIR, 0x81)
		out(old, regLCR, 0x80)
		out(old, regData, 0x34)
		out(old, regIER, 0x12)
		out(old, regLCR, 0x1B)
		out(old, regSCR, 0x77)
		out(old, regMCR, mcrLoop)
		out(old, regMCR, mcrOUT2|mcrDTR)
		out(old, regIER, ierRx|ierTx|ierLine)
		old.Input([]byte("0123456789abcdefXYZ"))
		old.InjectBreak()
		in(old, regData)
		out(old, regData, '1') // stuck
		synctest.Wait()
		old.WriteMany(regData, []byte("unsent"))
		if err := old.Quiesce(); err != nil {
			t.Fatal(err)
		}
		close(w.let)
		synctest.Wait()
		if w.got.String() != "1" {
			t.Errorf("a quiesced UART wrote %q", w.got.String())
		}
		state, err := old.State()
		if err != nil {
			t.Fatal(err)
		}
		var host bytes.Buffer
		p := &pin{}
		u := New(Config{Out: &host, Line: p})
		if err := u.Restore(state); err != nil {
			t.Fatal(err)
		}
		again, err := u.State()
		if err != nil || !bytes.Equal(state, again) {
			t.Errorf("state\n%s comes back as\n%s, %v", state, again, err)
		}
		if h, _ := p.now(); h {
			t.Error("interrupt before Resume")
		}
		if err := u.Resume(); err != nil {
			t.Fatal(err)
		}
		if h, _ := p.now(); !h {
			t.Error("no interrupt after Resume")
		}
		var got []byte
		for range 40 {
			lsr := in(u, regLSR)
			if lsr&lsrBI != 0 {
				got = append(got, '!')
			}
			if lsr&lsrDR != 0 {
				got = append(got, in(u, regData))
			}
			time.Sleep(charTime)
		}
		if string(got) != "123456789abcdefXYZ!\x00" {
			t.Errorf("input goes on as %q", got)
		}
		if v := in(u, regSCR); v != 0x77 {
			t.Errorf("SCR %#x", v)
		}
		if err := u.Close(); err != nil || host.String() != "unsent" {
			t.Errorf("output goes on as %q, %v", host.String(), err)
		}
		// The old one may go on as well.
		if err := old.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := old.Close(); err != nil || w.got.String() != "1unsent" {
			t.Errorf("the old one wrote %q, %v", w.got.String(), err)
		}
	})
}

// TestStateComplete fails when a register is added to the UART and forgotten
// in the state.
func TestStateComplete(t *testing.T) {
	wiring := map[string]string{
		"out": "", "in": "", "onFirst": "", "timeout": "", "mu": "", "changed": "", "line": "", "stats": "",
		"level": "set from the rest by Resume", "stopped": "", "closed": "",
		"ier": "IER", "fcr": "FCR", "lcr": "LCR", "mcr": "MCR", "scr": "SCR", "dll": "Divisor", "dlm": "Divisor",
		"msrDelta": "MSRDelta", "lsrErr": "LSRErrors", "thre": "THREPending",
		"rx": "FIFO", "rxHead": "FIFO", "rxLen": "FIFO", "host": "Held", "tx": "Unsent",
	}
	for f := range reflect.TypeFor[UART]().Fields() {
		if _, ok := wiring[f.Name]; !ok {
			t.Errorf("field %s is neither state nor wiring", f.Name)
		}
	}
}

func TestRestoreIsWary(t *testing.T) {
	for _, bad := range []string{
		"", "null x", "[]", `{"IER":16}`, `{"MCR":32}`, `{"MSRDelta":16}`, `{"LSRErrors":1}`, `{"LSRErrors":128}`,
		`{"FCR":2}`, `{"FCR":129,"New":1}`, `{"FCR":128}`, `{"IER":256}`, `{"FIFO":[1,2]}`, `{"FIFO":[256]}`, `{"Held":[65535]}`,
		`{"FCR":1,"FIFO":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}`,
		`{"Held":[` + strings.Repeat("1,", heldMax) + `1]}`,
		`{"Unsent":"` + strings.Repeat("AAAA", txHalf/3+1) + `"}`,
	} {
		u := New(Config{})
		if err := u.Restore([]byte(bad)); err == nil || !strings.HasPrefix(err.Error(), "uart: bad state: ") {
			t.Errorf("%.40s: %v", bad, err)
		}
		u.Close()
	}
}

func TestQuiesceFlushes(t *testing.T) {
	var host bytes.Buffer
	run(t, Config{Out: &host}, func(t *testing.T, u *UART, _ *pin) {
		u.WriteMany(regData, []byte("all of it"))
		if err := u.Quiesce(); err != nil {
			t.Fatal(err)
		}
		if host.String() != "all of it" {
			t.Errorf("host has %q", host.String())
		}
		if err := u.Quiesce(); err != nil {
			t.Errorf("twice: %v", err)
		}
	})
}

// TestReadStops: with a deadline-capable In a blocked Read ends at Quiesce, goes
// on at Resume, and nothing is lost or left behind.
func TestReadStops(t *testing.T) {
	for name, pair := range map[string]func() (io.ReadCloser, io.WriteCloser){
		"net.Conn": func() (io.ReadCloser, io.WriteCloser) { a, b := net.Pipe(); return a, b },
		"pipe": func() (io.ReadCloser, io.WriteCloser) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			return r, w
		},
	} {
		r, w := pair()
		t.Cleanup(func() { r.Close(); w.Close() })
		p := &pin{}
		u := New(Config{In: r, Line: p})
		out(u, regMCR, mcrOUT2)
		out(u, regIER, ierRx)
		get := func(want byte) {
			t.Helper()
			for end := time.Now().Add(10 * time.Second); in(u, regLSR)&lsrDR == 0; {
				if time.Now().After(end) {
					t.Fatalf("%s: %q never came", name, want)
				}
			}
			if got := in(u, regData); got != want {
				t.Fatalf("%s: got %q, want %q", name, got, want)
			}
		}
		w.Write([]byte("a"))
		get('a')
		if err := u.Quiesce(); err != nil {
			t.Fatal(err)
		}
		u.mu.Lock()
		if u.host.reading {
			t.Errorf("%s: still reading", name)
		}
		u.mu.Unlock()
		if err := u.Resume(); err != nil {
			t.Fatal(err)
		}
		go w.Write([]byte("b"))
		get('b')
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-u.host.done:
		default:
			t.Errorf("%s: the reader goroutine is left behind", name)
		}
		// The caller gets its reader back with no deadline on it.
		go w.Write([]byte("c"))
		b := make([]byte, 1)
		if _, err := r.Read(b); err != nil || b[0] != 'c' {
			t.Errorf("%s: afterwards Read gives %q, %v", name, b, err)
		}
	}
}

// TestReadWithoutDeadline: the goroutine ends when the owner closes In.
func TestReadWithoutDeadline(t *testing.T) {
	r, w := io.Pipe()
	u := New(Config{In: r})
	in(u, regLSR)
	w.Write([]byte("a"))
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	<-u.host.done
}

func FuzzRestore(f *testing.F) {
	full, _ := json.Marshal(State{FCR: 0xC1, IER: 15, MCR: 8, LCR: 3, FIFO: []uint16{65, 0x1000}, Held: []uint16{66}, Unsent: []byte("x")})
	f.Add(full)
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, state []byte) {
		u := New(Config{})
		defer u.Close()
		if u.Restore(state) != nil {
			return
		}
		one, err := u.State()
		if err != nil {
			t.Fatal(err)
		}
		v := New(Config{})
		defer v.Close()
		if err := v.Restore(one); err != nil {
			t.Fatalf("its own state %s: %v", one, err)
		}
		if err := u.Resume(); err != nil {
			t.Fatal(err)
		}
		for off := range uint64(Size) {
			in(u, off)
		}
	})
}
