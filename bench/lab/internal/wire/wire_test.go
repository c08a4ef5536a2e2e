package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	big := bytes.Repeat([]byte("x"), MaxPayload+3)
	if err := w.Frame(Started, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Stream(Stdout).Write(big); n != len(big) || err != nil {
		t.Fatalf("Stream.Write = %d, %v", n, err)
	}
	if err := w.Frame(Stderr, big); err == nil {
		t.Error("a payload over MaxPayload was accepted")
	}
	r := NewReader(&b)
	for _, want := range []struct {
		k Kind
		n int
	}{{Started, 0}, {Stdout, MaxPayload}, {Stdout, 3}} {
		k, p, err := r.Frame()
		if k != want.k || len(p) != want.n || err != nil {
			t.Fatalf("Frame = kind %d, %d bytes, %v; want kind %d, %d bytes", k, len(p), err, want.k, want.n)
		}
	}
	if _, _, err := r.Frame(); err != io.EOF {
		t.Errorf("at the end: %v, want io.EOF", err)
	}
}

func TestReaderRefuses(t *testing.T) {
	if _, _, err := NewReader(bytes.NewReader([]byte{2, 0xff, 0xff, 0xff, 0xff, 1})).Frame(); err == nil {
		t.Error("a frame of 4 GiB was accepted")
	}
	for _, cut := range [][]byte{{2, 3}, {2, 3, 0, 0, 0}, {2, 3, 0, 0, 0, 'a'}} {
		if _, _, err := NewReader(bytes.NewReader(cut)).Frame(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("% x: %v, want io.ErrUnexpectedEOF", cut, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	var b bytes.Buffer
	w := NewWriter(&b)
	_ = w.Frame(Started, nil)
	_ = w.Frame(Stdout, []byte("a line\n"))
	_ = w.Frame(Ended, []byte(`{"Code":7}`))
	f.Add(b.Bytes())
	f.Add([]byte{1, 0, 0, 0, 0, 5, 1, 0, 1, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		// What was read, written again, is what came in, up to the first bad frame.
		var again bytes.Buffer
		w, r := NewWriter(&again), NewReader(bytes.NewReader(in))
		for {
			k, p, err := r.Frame()
			if err != nil {
				break
			}
			if err := w.Frame(k, p); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(in, again.Bytes()) {
			t.Fatalf("read % x as % x", in, again.Bytes())
		}
	})
}
