package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// events reads lines back, and holds them to what every line is.
func events(t testing.TB, b []byte) []Event {
	t.Helper()
	var out []Event
	for l := range bytes.Lines(b) {
		var e Event
		d := json.NewDecoder(bytes.NewReader(l))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil || l[len(l)-1] != '\n' {
			t.Fatalf("%q: %v", l, err)
		}
		if i := bytes.IndexFunc(l[:len(l)-1], func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
			t.Fatalf("not printable ASCII at %d: %q", i, l)
		}
		out = append(out, e)
	}
	return out
}

func denial(n int) Event {
	return Event{Event: EgressDenied, Name: "evil.test", Address: fmt.Sprintf("192.0.%d.%d", n/256, n%256), Port: 443, Proto: "tcp", Reason: "deny-all: no rule allows this address"}
}

func TestLinesReadBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buf bytes.Buffer
		w := NewWriter(&buf, "web")
		begun := time.Now()
		w.Emit(Event{Event: MachineCreated})
		w.Emit(denial(1))
		time.Sleep(time.Second)
		for range 100 {
			w.Emit(denial(1))
		}
		time.Sleep(time.Second)
		w.Emit(denial(1))
		w.Emit(denial(2))
		w.Emit(Event{Event: MachineEnded, Reason: "exit 0", Machine: "other"})
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		last := begun.Add(2 * time.Second)
		folded := denial(1)
		folded.Count, folded.Last = 101, &last
		want := []Event{{Event: MachineCreated}, denial(1), denial(2), {Event: MachineEnded, Reason: "exit 0", Machine: "other"}, folded}
		at := []time.Duration{0, 0, 2 * time.Second, 2 * time.Second, time.Second}
		got := events(t, buf.Bytes())
		if len(got) != len(want) {
			t.Fatalf("%s", buf.Bytes())
		}
		for i, e := range got {
			want[i].Time = begun.Add(at[i])
			if want[i].Machine == "" {
				want[i].Machine = "web"
			}
			if !e.Time.Equal(want[i].Time) || (e.Last == nil) != (want[i].Last == nil) || e.Last != nil && !e.Last.Equal(last) {
				t.Errorf("line %d: %s", i, buf.Bytes())
			}
			if e.Time, e.Last, want[i].Time, want[i].Last = begun, nil, begun, nil; e != want[i] {
				t.Errorf("line %d: %+v, want %+v", i, e, want[i])
			}
		}
		w.Emit(denial(3))
		if err := w.Close(); err != nil || len(events(t, buf.Bytes())) != len(want) {
			t.Error("after Close")
		}
	})
}

// TestFolding: what is denied again and again makes two lines in each FoldFor at
// most, and is all counted.
func TestFolding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buf lockedBuffer
		w := NewWriter(&buf, "web")
		const seconds = 100
		for range seconds {
			for range 50 {
				w.Emit(denial(1))
			}
			time.Sleep(time.Second)
		}
		// It shows without Close, and once it is over.
		time.Sleep(2 * FoldFor)
		synctest.Wait()
		total, lines := 0, events(t, buf.bytes())
		for _, e := range lines {
			total += max(e.Count, 1)
		}
		if total != 50*seconds || len(lines) > 2*seconds/int(FoldFor.Seconds())+2 {
			t.Errorf("%d denials in %d lines", total, len(lines))
		}
		w.mu.Lock()
		if len(w.folded) != 0 {
			t.Errorf("%d kinds are kept for nothing", len(w.folded))
		}
		w.mu.Unlock()
		w.Emit(denial(1))
		synctest.Wait()
		if n := len(events(t, buf.bytes())); n != len(lines)+1 {
			t.Error("after a pause a denial is news again")
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestFlood: a guest that tries every address cannot fill the disk, and every
// denial is in a line or a count; the machine's own events are all there.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buf lockedBuffer
		w := NewWriter(&buf, "web")
		w.Emit(Event{Event: MachineCreated})
		const many = 50_000
		for i := range many {
			w.Emit(denial(i))
		}
		w.Emit(Event{Event: MachineEnded})
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		total, lost, own := 0, 0, 0
		lines := events(t, buf.bytes())
		for _, e := range lines {
			switch e.Event {
			case EgressDenied:
				total += max(e.Count, 1)
			case Lost:
				lost += e.Count
			default:
				own++
			}
		}
		if len(lines) > maxKinds+3 || total != maxKinds || total+lost != many || own != 2 {
			t.Errorf("%d lines: %d denials and %d lost of %d, %d others", len(lines), total, lost, many, own)
		}
	})
}

// TestSlowWriter: Emit does not wait for a writer that does not return, what
// waits is bounded, and Close gives up.
func TestSlowWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := &stuckWriter{release: make(chan struct{})}
		w := NewWriter(stuck, "web")
		w.Emit(Event{Event: MachineCreated})
		synctest.Wait() // in Write now
		begun := time.Now()
		for round := range 20 {
			for i := range 10_000 {
				w.Emit(denial(round*10_000 + i))
			}
			for range 100 {
				w.Emit(Event{Event: "other"})
			}
			w.mu.Lock()
			if len(w.queue) > maxQueue || len(w.folded) > maxKinds {
				t.Fatalf("%d events wait, %d kinds", len(w.queue), len(w.folded))
			}
			w.mu.Unlock()
		}
		if d := time.Since(begun); d != 0 {
			t.Errorf("Emit waited for %v", d)
		}
		if err := w.Close(); !errors.Is(err, ErrSlow) || time.Since(begun) != closeWait {
			t.Errorf("Close: %v after %v", err, time.Since(begun))
		}
		close(stuck.release)
		synctest.Wait()
		total := 0
		for _, e := range events(t, stuck.buf.bytes()) {
			total += max(e.Count, 1)
		}
		if want := 1 + 20*10_100; total != want+1 && total != want { // the count of the lost is a line of its own
			t.Errorf("%d events are told of, of %d", total, want)
		}
	})
}

// TestHostileText: nothing that a guest chooses begins a line of its own, moves a
// terminal's cursor or is longer than a field.
func TestHostileText(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf, "web")
	hostile := []string{
		"a\n{\"event\":\"machine-ended\"}", "\x1b[2J\x07", "\u009b31m", "\u202egpj.exe", "\u2028", "a\x7f", "\xff\xfe", "\x00", "😀\U000e0041", `"quoted\`, "<script>&",
		strings.Repeat("é", 5000), strings.Repeat("\x01", 5000),
	}
	for _, s := range hostile {
		w.Emit(Event{Event: EgressDenied, Name: s, Reason: s, Address: s})
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got := events(t, buf.Bytes())
	if len(got) != len(hostile) {
		t.Fatalf("%d lines of %d events", len(got), len(hostile))
	}
	for i, e := range got {
		want := strings.ToValidUTF8(hostile[i], "\ufffd")
		if len(hostile[i]) <= maxField && len(want) <= maxField && e.Name != want && i != 6 {
			t.Errorf("%q is read back as %q", hostile[i], e.Name)
		}
		if len(e.Name) > maxField+3 {
			t.Errorf("%d bytes of a name", len(e.Name))
		}
	}
	if l := line(Event{Time: time.Date(99999, 1, 1, 0, 0, 0, 0, time.UTC)}); !json.Valid(l) {
		t.Errorf("a clock gone wrong: %q", l)
	}
}

func TestErrorsAndNil(t *testing.T) {
	full := errors.New("disk full")
	w := NewWriter(failing{full}, "web")
	w.Emit(Event{Event: MachineCreated})
	w.Emit(Event{Event: MachineEnded})
	if err := w.Close(); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	w = nil
	w.Emit(denial(1))
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// TestConcurrent: every event is told of, whoever emits.
func TestConcurrent(t *testing.T) {
	var buf lockedBuffer
	w := NewWriter(&buf, "web")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				w.Emit(denial(i % 10))
				if i%100 == 0 {
					w.Emit(Event{Event: fmt.Sprintf("own-%d", g)})
				}
			}
		})
	}
	wg.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	total, own := 0, 0
	for _, e := range events(t, buf.bytes()) {
		if e.Event == EgressDenied {
			total += max(e.Count, 1)
		} else {
			own++
		}
	}
	if total != 2000 || own != 20 {
		t.Errorf("%d denials, %d others", total, own)
	}
}

// FuzzLine: any text is one line of printable JSON that says the same again.
func FuzzLine(f *testing.F) {
	f.Add("evil.test", "deny-all", "192.0.2.1")
	f.Add("a\nb\x1b\u009b", "\u202e\xff", "😀")
	f.Fuzz(func(t *testing.T, name, reason, address string) {
		e := Event{Event: EgressDenied, Name: cut(name), Reason: cut(reason), Address: cut(address)}
		got := events(t, line(e))
		if len(got) != 1 || bytes.Count(line(e), []byte("\n")) != 1 {
			t.Fatalf("%q", line(e))
		}
		for _, pair := range [][2]string{{got[0].Name, e.Name}, {got[0].Reason, e.Reason}, {got[0].Address, e.Address}} {
			if !slices.Equal([]rune(pair[0]), []rune(pair[1])) {
				t.Fatalf("%q is read back as %q", pair[1], pair[0])
			}
		}
	})
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

type stuckWriter struct {
	release chan struct{}
	buf     lockedBuffer
}

func (s *stuckWriter) Write(p []byte) (int, error) {
	<-s.release
	return s.buf.Write(p)
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
