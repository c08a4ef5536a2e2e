package machines

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newRing(t testing.TB, size int64) (*Ring, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRing(f, size)
	t.Cleanup(func() { r.Close() })
	return r, path
}

func open(t testing.TB, path string, size int64) *Reader {
	t.Helper()
	r, err := OpenReader(path, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func all(r *Reader) (out string) {
	for e, ok := r.Next(); ok; e, ok = r.Next() {
		out += string(e.Data)
	}
	return out
}

// TestRing: whatever is written, the end of it is kept, between a half and the
// whole of the size, and the file grows no further.
func TestRing(t *testing.T) {
	const size = 4096
	for _, length := range []int{1, 7, 100, 1000, size/2 - ringHeader} {
		r, path := newRing(t, size)
		w := r.Stream(Console)
		var sent string
		for i := range 3 * size / length {
			line := fmt.Sprintf("%*d", length, i)[:length]
			sent += line
			if n, err := w.Write([]byte(line)); n != length || err != nil {
				t.Fatal(n, err)
			}
			if i%97 == 0 { // at any fill
				if got := all(open(t, path, size)); !strings.HasSuffix(sent, got) || len(got) < min(len(sent), length) {
					t.Fatalf("length %d, after %d: %d bytes that are not the end", length, i, len(got))
				}
			}
		}
		got := all(open(t, path, size))
		kept := len(got) / length * (length + ringHeader)
		if !strings.HasSuffix(sent, got) || kept < size/2-length-ringHeader || kept > size {
			t.Errorf("length %d: %d bytes with their headers were kept of %d", length, kept, size)
		}
		if st, err := os.Stat(path); err != nil || st.Size() > size {
			t.Errorf("length %d: the file has %d bytes, %v", length, st.Size(), err)
		}
		tail, err := r.Tail(10)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(tail)
		if want := sent[len(sent)-10:]; string(b) != want {
			t.Errorf("length %d: the tail is %q, want %q", length, b, want)
		}
	}
}

// TestRingFollow: who reads along misses nothing, and who is lapped is told.
func TestRingFollow(t *testing.T) {
	const size = 2048
	r, path := newRing(t, size)
	w := r.Stream(Console)
	in := open(t, path, size)
	var sent, got string
	for i := range 1000 {
		line := fmt.Sprintf("line %d\n", i)
		sent += line
		_, _ = w.Write([]byte(line))
		if i%5 == 0 {
			got += all(in)
		}
	}
	got += all(in)
	if got != sent || in.Lost != 0 {
		t.Errorf("%d of %d bytes came, lost %d", len(got), len(sent), in.Lost)
	}
	for i := range 1000 {
		_, _ = w.Write([]byte(fmt.Sprintf("again %d\n", i)))
	}
	if got := all(in); in.Lost == 0 || !strings.HasSuffix(got, "again 999\n") {
		t.Errorf("lost %d, the end is %q", in.Lost, got[max(0, len(got)-20):])
	}
}

// TestRingTorn: a record that was cut off by a crash ends the log, and does no more.
func TestRingTorn(t *testing.T) {
	r, path := newRing(t, 4096)
	w := r.Stream(Console)
	_, _ = w.Write([]byte("whole\n"))
	_, _ = w.Write([]byte("torn\n"))
	if err := os.Truncate(path, 2*ringHeader+6+2); err != nil {
		t.Fatal(err)
	}
	if got := all(open(t, path, 4096)); got != "whole\n" {
		t.Errorf("%q", got)
	}
}

// FuzzReader: a log is written by a process that the guest might have taken over.
// Reading ends, and gives no more than the file holds.
func FuzzReader(f *testing.F) {
	for _, n := range []int{0, 1, 30, 200} {
		r, path := newRing(f, 2048)
		r.now = func() time.Time { return time.Unix(1, 2) }
		for i := range n {
			_, _ = r.Stream(byte(i % 2)).Write([]byte(strings.Repeat("x", i%40+1)))
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const size = 2048
		reader := func() *Reader {
			r := &Reader{f: bytes.NewReader(b), half: size / 2}
			r.generation = r.oldest()
			return r
		}
		r := reader()
		n := 0
		for e, ok := r.Next(); ok; e, ok = r.Next() {
			if n += len(e.Data) + ringHeader; n > size {
				t.Fatalf("more was read than there is: %d of %d", n, len(b))
			}
		}
		var out bytes.Buffer
		p := &printer{w: &out, o: LogOptions{Times: true}, fresh: true}
		r = reader()
		for e, ok := r.Next(); ok; e, ok = r.Next() {
			p.print(e)
		}
	})
}

// flood is a log whose writer is always ahead of its reader.
type flood struct {
	r *Ring
	n int
}

func (f *flood) ReadAt(p []byte, off int64) (int, error) {
	for range 2 {
		f.n++
		fmt.Fprintf(f.r.Stream(Console), "line %d\n", f.n)
	}
	return f.r.f.ReadAt(p, off)
}

// TestFlood: who asks for the end of a log that grows faster than it is read gets an
// end, of no more than the log's size.
func TestFlood(t *testing.T) {
	const size = 8192
	ring, _ := newRing(t, size)
	fmt.Fprintln(ring.Stream(Console), "first")
	endless := func() *Reader {
		r := &Reader{f: &flood{r: ring}, half: size / 2}
		r.generation = r.oldest()
		return r
	}
	all := func(Entry) bool { return true }
	text := func(es []Entry) (out string) {
		for _, e := range es {
			out += string(e.Data)
		}
		return out
	}
	if got := text(endless().tail(3, all)); strings.Count(got, "\n") != 3 || !strings.HasPrefix(got, "line ") {
		t.Errorf("the last three lines are %q", got)
	}
	if got := text(endless().tail(1<<30, all)); got == "" || len(got) > size {
		t.Errorf("%d bytes of a log of %d", len(got), size)
	}
}

// TestLastLines: tail counts lines, whatever records they came in.
func TestLastLines(t *testing.T) {
	for _, c := range []struct {
		entries string // records apart by |
		n       int
		want    string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\n|b\n|c\n", 2, "b\nc\n"},
		{"a\nb|b|b\nc", 1, "c"},
		{"a\nb|b|b\nc", 2, "bbb\nc"},
		{"a\nb\n", 5, "a\nb\n"},
		{"a\nb\n", 0, ""},
		{"a\n|\n", 1, "\n"},
		{"", 3, ""},
	} {
		var es []Entry
		for _, s := range strings.Split(c.entries, "|") {
			if s != "" {
				es = append(es, Entry{Data: []byte(s)})
			}
		}
		got := ""
		for _, e := range lastLines(es, c.n) {
			got += string(e.Data)
		}
		if got != c.want {
			t.Errorf("%q, %d: %q, want %q", c.entries, c.n, got, c.want)
		}
	}
}
